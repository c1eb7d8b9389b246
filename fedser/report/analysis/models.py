"""Runs → corpora → models: the runs of one model differ in nothing but their seed and in what was measured."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from fedser.report.analysis import conditions
from fedser.report.analysis.conditions import Condition, attack_title, parse
from fedser.report.analysis.estimates import Estimate, Measure
from fedser.report.analysis.naming import Naming, bounded, naming, short
from fedser.report.analysis.runs import Evaluation, Run

log = logging.getLogger(__name__)

TRAINING = ("dataset", "features", "partition", "model", "client", "strategy", "rounds")
# Settings that change where a model is trained, not what it becomes.
IDLE = {"dataset": ("root", "reader", "on_bad_audio"), "client": ("timeout", "state_folder")}


@dataclass(frozen=True, eq=False)
class Model:
    """One way of training, with a run or more per seed."""

    label: str  # nature, AT-PGD, …
    against: str | None  # the attack it was trained against
    runs: Sequence[Run]
    number: int = 0  # its place among the models of its corpus: its colour
    family: str = ""  # models of one family differ in nothing but their defence
    naming: Naming = field(default_factory=Naming)  # how its corpus calls what was measured

    @cached_property
    def measures(self) -> dict[str, dict[Any, Measure]]:
        """Per condition and seed the measure that counts."""
        found: dict[str, dict[Any, Measure]] = {}
        for run in self.runs:
            for measure in self.naming.measures(run):
                seeds = found.setdefault(measure.condition.name, {})
                seed = run.setting("seed")
                if seed not in seeds or measure.rank > seeds[seed].rank:
                    seeds[seed] = measure
        return {name: found[name] for name in conditions.in_order(found)}

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """Per condition, in order."""
        known = len({seed for seeds in self.measures.values() for seed in seeds})
        return {name: Estimate(parse(name), list(seeds.values()), known) for name, seeds in self.measures.items()}

    @cached_property
    def examples(self) -> dict[str, list[dict[str, Any]]]:
        """Per set of adversarial examples how far they lie from their originals, of each seed's measure that counts."""
        found: dict[str, dict[Any, dict]] = {}
        for seeds in self.measures.values():
            for seed, measure in seeds.items():
                if measure.examples:
                    found.setdefault(measure.condition.examples, {}).setdefault(seed, measure.examples)
        return {name: list(seeds.values()) for name, seeds in found.items()}

    @property
    def seeds(self) -> list:
        return sorted({run.setting("seed") for run in self.runs}, key=str)

    @property
    def evaluations(self) -> list[Evaluation]:
        return [evaluation for run in self.runs for evaluation in run.evaluations]

    def curves(self, condition: str) -> dict[Any, tuple[list[int], list[float]]]:
        """Per seed the rounds and UARs of the run that got furthest."""
        found: dict[Any, tuple[list[int], list[float]]] = {}
        for run in self.runs:
            seed, curve = run.setting("seed"), self.naming.curve(run, condition)
            if curve[0] and (seed not in found or curve[0][-1] > found[seed][0][-1]):
                found[seed] = curve
        return {seed: found[seed] for seed in sorted(found, key=str)}

    def flips(self, attack: str) -> pd.DataFrame | None:
        """Per utterance of all seeds: the L2 (`distance`, σ) at which this attack flips it, `snr`, `label` and `seed`.

        0 where the clean utterance is wrong already, infinite where the attack failed. None without utterances.csv.
        """
        parts = []
        for measure in self.measures.get(f"adversarial/{attack}", {}).values():
            frame, source = measure.evaluation.utterances, parse(measure.source).variant
            columns = ("correct/original", f"correct/{measure.source}", f"l2/{source}", f"snr/{source}")
            if frame is None or any(column not in frame for column in columns):
                return None
            clean, right, l2, snr = (frame[column].to_numpy() for column in columns)
            distance = np.where(clean < 0.5, 0.0, np.where((right < 0.5) & np.isfinite(l2), l2, np.inf))
            needed = np.where(distance == 0, np.inf, np.where(np.isinf(distance), -np.inf, snr))
            found = {"distance": distance, "snr": needed, "label": frame["emotion"], "seed": measure.seed}
            parts.append(pd.DataFrame(found))
        return pd.concat(parts, ignore_index=True) if parts else None


@dataclass(frozen=True, eq=False)
class Corpus:
    """What can be compared: runs on the same data with the same classes."""

    name: str
    classes: tuple[str, ...]
    runs: Sequence[Run]
    models: Sequence[Model]
    differing: Mapping[str, Mapping[str, list[str]]] = field(default_factory=dict)  # setting → value → models
    notes: Sequence[str] = ()  # what a reader should know before comparing

    @property
    def chance(self) -> float | None:
        """The UAR of guessing."""
        return 1 / len(self.classes) if self.classes else None

    @property
    def families(self) -> list[list[Model]]:
        """Models that differ in their defence only."""
        names = dict.fromkeys(model.family for model in self.models)
        return [[model for model in self.models if model.family == name] for name in names]

    @cached_property
    def conditions(self) -> list[str]:
        return conditions.in_order(name for model in self.models for name in model.estimates)

    def attacks(self, *kinds: str) -> list[str]:
        """Attacks that some model was tested under, as most runs have them, of these kinds or any."""
        parsed = [parse(name) for name in self.conditions]
        chosen = [c for c in parsed if c.attack and (not kinds or c.kind in kinds) and not c.varied]
        return list(dict.fromkeys(c.variant for c in chosen))

    @property
    def minimal_norm(self) -> list[str]:
        """Attacks without a budget: they look for the smallest change that flips."""
        return [name for name in self.attacks("adversarial") if self.eps(parse(f"adversarial/{name}")) is None]

    def settings(self, variant: str) -> dict[str, Any]:
        """The attack's settings; empty if no evaluation holds them."""
        measure = self._attacks.get(variant)
        return (measure.attack.get("settings") or {}) if measure else {}

    def threat(self, variant: str) -> str:
        """The attack's threat model in a line, as it printed it; empty if none did."""
        measure = self._attacks.get(variant)
        return str(measure.attack.get("threat") or "") if measure else ""

    @cached_property
    def _attacks(self) -> dict[str, Measure]:
        """Per attack, with its varied settings, the first measure that counts and knows it."""
        by_seed = (seeds for model in self.models for seeds in model.measures.values())
        measures = [measure for seeds in by_seed for measure in seeds.values() if measure.attack]
        return {measure.condition.variant: measure for measure in reversed(measures)}

    def eps(self, condition: Condition) -> float | None:
        """The budget in σ; None where there is none."""
        measure = self._attacks.get(condition.variant)
        if measure is None:
            return float(condition.settings["eps"]) if "eps" in condition.settings else None
        source = parse(measure.source).variant
        return float(measure.evaluation.attack(source)["eps"]) if bounded(measure.evaluation, source) else None

    def worst(self, model: Model, kind: str) -> Estimate | None:
        """The model's lowest UAR under an attack of this kind: of those with a budget, as most runs have it."""
        found = [
            estimate
            for estimate in model.estimates.values()
            if estimate.condition.kind == kind
            and not estimate.condition.varied
            and estimate.representative
            and self.eps(estimate.condition) is not None
        ]
        return min(found, key=lambda estimate: estimate.uar, default=None)

    def strongest(self, kind: str) -> str | None:
        """Of the attacks with a budget that most models were tested under so, the one that leaves least on average."""
        found: dict[str, list[float]] = {}
        for model in self.models:
            for name in self.attacks(kind):
                estimate = model.estimates.get(f"{kind}/{name}")
                if estimate and estimate.representative and self.eps(estimate.condition) is not None:
                    found.setdefault(name, []).append(estimate.uar)
        return min(found, key=lambda name: (-len(found[name]), sum(found[name]) / len(found[name])), default=None)

    @cached_property
    def looked_at(self) -> list[str]:
        """The conditions that speakers, classes and models are compared under: without attack, and the strongest ones.

        Each kind of attacker has one of its own: what is strongest without randomisation need not be so elsewhere.
        """
        found = [(kind, self.strongest(kind)) for kind in conditions.ATTACKED]
        wanted = [*conditions.CLEAN, *(f"{kind}/{attack}" for kind, attack in found if attack)]
        return [name for name in wanted if name in self.conditions]


def corpora(runs: Sequence[Run]) -> list[Corpus]:
    """One corpus per data set and set of classes, in the runs' order."""
    groups: dict[tuple, list[Run]] = {}
    places = [_place(run, runs) for run in runs]
    for run, place in zip(runs, places, strict=True):
        groups.setdefault(place or next(filter(None, places), ("unknown corpus", ())), []).append(run)
    if not groups:
        groups[("unknown corpus", ())] = []
    names = _distinct_names(groups)
    if len(groups) > 1:
        log.warning("the runs do not all compare (%s): each has a section of its own", ", ".join(names))
    return [_corpus(name, classes, group) for name, ((_, classes), group) in zip(names, groups.items(), strict=True)]


def _place(run: Run, runs: Sequence[Run]) -> tuple | None:
    """Data set and classes; None without a configuration. A run that has not been evaluated yet, whose configuration
    need not name its classes, belongs to the first other one of its data set that it can belong to."""
    name = str(run.setting("dataset.name") or "")
    if not name:
        return None
    others = [other.classes for other in runs if other.evaluations and other.setting("dataset.name") == name]
    if not run.evaluations:
        alike = [classes for classes in others if not run.classes or set(classes) == set(run.classes)]
        return name, next(iter(alike), run.classes)
    return name, run.classes


def _distinct_names(groups: Iterable[tuple]) -> list[str]:
    groups = list(groups)
    names = [name for name, _ in groups]
    with_classes = [f"{name} ({len(classes)} classes)" if names.count(name) > 1 else name for name, classes in groups]
    seen: list[str] = []
    for name in with_classes:  # as many classes, but other ones
        seen.append(f"{name} #{with_classes[: len(seen)].count(name) + 1}" if name in seen else name)
    return seen


def _corpus(name: str, classes: tuple[str, ...], runs: Sequence[Run]) -> Corpus:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.config and run.setting("dataset.name"):
            groups.setdefault(json.dumps(_training(run), sort_keys=True, default=str), []).append(run)
    ways = sorted(((group, flat(json.loads(key))) for key, group in groups.items()), key=lambda way: _rank(way[0][0]))
    labels = _labels([group[0] for group, _ in ways], [settings for _, settings in ways])
    families = [json.dumps({k: v for k, v in way.items() if not k.startswith("defence")}) for _, way in ways]
    first = 0 if labels and not ways[0][0][0].setting("defence.training") else 1  # 0 is nature's, in every report
    names = naming([run for group, _ in ways for run in group])
    models = [
        Model(label, _against(group[0]), group, number, family, names)
        for number, (label, (group, _), family) in enumerate(zip(labels, ways, families, strict=True), start=first)
    ]
    return Corpus(name, classes, runs, models, _differing(labels, [settings for _, settings in ways]), names.notes)


def _training(run: Run) -> dict[str, Any]:
    """What decides the trained weights, but for the seed: settings, and the hashes of the user's own code."""
    found: dict[str, Any] = {}
    for key in TRAINING:
        value, idle = run.config.get(key), IDLE.get(key, ())
        found[key] = {k: v for k, v in value.items() if k not in idle} if isinstance(value, dict) else value
    return found | {"defence": run.setting("defence.training"), "code": run.summary.get("code")}


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted keys."""
    if not isinstance(node, dict):
        return {prefix: node}
    return {key: v for name, part in node.items() for key, v in flat(part, f"{prefix}.{name}".strip(".")).items()}


# --- What models are called ------------------------------------------------------------------------------------------


def _against(run: Run) -> str | None:
    return run.setting("defence.training.attack.name")


def _label(run: Run) -> str:
    """`nature`, `AT-PGD`, or the own name of another training objective."""
    training = run.setting("defence.training")
    if not training:
        return "nature"
    attack = attack_title(_against(run) or "")
    target = str(training.get("_target_") or "").rpartition(".")[2] if isinstance(training, dict) else str(training)
    if training == target or not target.startswith("Adversarial"):
        return " ".join(filter(None, [short(training), attack]))
    return f"AT-{attack or 'unknown'}"


def _rank(run: Run) -> tuple:
    """Nature first, then as attacks are ordered."""
    known = list(conditions.TITLES)
    against = _against(run)
    if not run.setting("defence.training"):
        return (0, 0, "")
    return (1, known.index(against) if against in known else len(known), str(against))


def _labels(runs: Sequence[Run], settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each model is called: with its network's name where there are several, and those that would still have one
    name with the settings in which they differ."""
    networks = [str(run.setting("model.name")) for run in runs]
    plain = [
        f"{network} {_label(run)}" if len(set(networks)) > 1 else _label(run)
        for run, network in zip(runs, networks, strict=True)
    ]
    labels = []
    for label, own in zip(plain, settings, strict=True):
        namesakes = [other for other_label, other in zip(plain, settings, strict=True) if other_label == label]
        named = ", ".join(f"{key.rpartition('.')[2]} {_brief(own.get(key))}" for key in _distinct(namesakes)[:2])
        labels.append(f"{label} ({named})" if named else label)
    return labels


def _distinct(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys in which settings differ; of those that differ alike (`model.name`, `model.module.width`) the first."""
    found: dict[tuple, str] = {}
    keys = dict.fromkeys(key for each in settings for key in each)
    for key in sorted(keys, key=lambda key: (key.count("."), not key.endswith(".name"))):
        values = [_brief(each.get(key)) for each in settings]
        if len(set(values)) > 1:
            found.setdefault(tuple(values.index(value) for value in values), key)
    return list(found.values())


def _brief(value: Any) -> str:
    text = short(value)
    return text if len(text) <= 24 else text[:8]


def _differing(labels: Sequence[str], settings: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[str]]]:
    """In what the models differ besides their defence: per setting and value the models that have it."""
    found: dict[str, dict[str, list[str]]] = {}
    for key in _distinct([{k: v for k, v in each.items() if not k.startswith("defence")} for each in settings]):
        for label, each in zip(labels, settings, strict=True):
            found.setdefault(key, {}).setdefault(_brief(each.get(key)), []).append(label)
    return found
