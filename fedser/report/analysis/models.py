"""Runs → corpora → models: the runs of one model differ in nothing but their seed and in what was measured."""

import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from fedser.evaluation import statistics
from fedser.report.analysis import conditions
from fedser.report.analysis.conditions import Condition, attack_title, parse
from fedser.report.analysis.estimates import Estimate, Measure, OfUnseen
from fedser.report.analysis.naming import Naming, naming, numbered, short
from fedser.report.analysis.runs import Attack, Run

log = logging.getLogger(__name__)

TRAINING = (
    *("dataset", "features", "partition", "model", "client", "augment", "corruption", "strategy", "rounds"),
    *("batch_norm", "averaging", "selection"),
)
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
    def unseen(self) -> dict[str, Estimate]:
        """The same of speakers whom nobody trained on, under the conditions that some run measured on such."""
        found = {}
        for name, seeds in self.measures.items():
            held_out = [m for m in seeds.values() if m.source in m.evaluation.content["unseen"]["conditions"]]
            if held_out:
                measures = [OfUnseen(m.run, m.evaluation, m.condition, m.source) for m in held_out]
                found[name] = Estimate(parse(name), measures, len(seeds))
        return found

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
    def centralised(self) -> bool:
        """Whether it was trained on all clients' utterances in one place."""
        return any(run.setting("strategy.name") == "centralised" for run in self.runs)

    @property
    def seeds(self) -> list:
        return sorted({run.setting("seed") for run in self.runs}, key=str)

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
            frame, source = measure.evaluation.utterances, measure.variant
            columns = ("correct/original", f"correct/{measure.source}", f"l2/{source}", f"snr/{source}")
            if frame is None or any(column not in frame for column in columns):
                return None
            clean, right, l2, snr = (frame[column].to_numpy() for column in columns)
            distance = np.where(clean < 0.5, 0.0, np.where((right < 0.5) & np.isfinite(l2), l2, np.inf))
            needed = np.where(distance == 0, np.inf, np.where(np.isinf(distance), -np.inf, snr))
            found = {"distance": distance, "snr": needed, "label": frame["emotion"], "seed": measure.seed}
            parts.append(pd.DataFrame(found))
        return pd.concat(parts, ignore_index=True) if parts else None

    def median_flip(self, attack: str) -> dict[str, float] | None:
        """What flips the median utterance, of the `clips` that are right at first: `l2` (σ), `snr_db`; how many of
        them are `flipped`, as a share. None without utterances.csv."""
        if (found := self.flips(attack)) is None:
            return None
        right = found[found["distance"] > 0]
        medians = {"l2": statistics.median_flip(found["distance"]), "snr_db": float(right["snr"].median())}
        return medians | {"flipped": float(np.isfinite(right["distance"]).mean()), "clips": len(right)}


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

    def reference(self, model: Model) -> Model | None:
        """The same network under the same defence, trained without federation on the same features; None without one.

        How it was trained may differ: its rounds, say, are those of all clients.
        """

        def kind(each: Model) -> list:
            return [each.against, *(each.runs[0].config.get(key) for key in ("features", "partition", "model"))]

        others = (each for each in self.models if each.centralised and kind(each) == kind(model))
        return None if model.centralised else next(others, None)

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

    def attack(self, variant: str) -> Attack:
        """The attack, with its varied settings, as the first measure that counts and knows it; empty if none does."""
        return self._attacks.get(variant, Attack())

    def threat(self, variant: str) -> str:
        """The attack's threat model in a line, as it printed it; empty if none did."""
        return self.attack(variant).threat

    @cached_property
    def _attacks(self) -> dict[str, Attack]:
        by_seed = (seeds for model in self.models for seeds in model.measures.values())
        measures = [m for seeds in by_seed for m in seeds.values() if m.variant in m.evaluation.attacks]
        return {m.condition.variant: m.evaluation.attack(m.variant) for m in reversed(measures)}

    def eps(self, condition: Condition) -> float | None:
        """The budget in σ; None where there is none."""
        if attack := self._attacks.get(condition.variant):
            return attack.eps
        return float(condition.settings["eps"]) if "eps" in condition.settings else None

    def judges(self, model: Model, kind: str) -> dict[str, Estimate]:
        """What a model is judged by, by attack: those of this kind with the budget that most runs have, also with more
        steps or otherwise varied."""
        found = {
            e.condition.variant: e
            for e in model.estimates.values()
            if e.condition.kind == kind and "eps" not in e.condition.settings
        }
        return {attack: e for attack, e in found.items() if e.representative and self.eps(e.condition) is not None}

    def worst(self, model: Model, kind: str) -> Estimate | None:
        """The model's lowest UAR of those that it is judged by."""
        return min(self.judges(model, kind).values(), key=lambda estimate: estimate.uar, default=None)

    def strongest(self, kind: str) -> str | None:
        """Of the attacks that most models are judged by, the one that leaves least on average."""
        found: dict[str, list[float]] = {}
        for model in self.models:
            for attack, estimate in self.judges(model, kind).items():
                found.setdefault(attack, []).append(estimate.uar)
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
    places = [_place(run, runs) for run in runs]
    known = next(filter(None, places), ("unknown corpus", ()))
    groups: dict[tuple, list[Run]] = {} if runs else {known: []}
    for run, place in zip(runs, places, strict=True):
        groups.setdefault(place or known, []).append(run)
    shared = Counter(name for name, _ in groups)
    names = numbered(f"{name} ({len(classes)} classes)" if shared[name] > 1 else name for name, classes in groups)
    if len(groups) > 1:
        log.warning("the runs do not all compare (%s): each has a section of its own", ", ".join(names))
    return [_corpus(name, classes, group) for name, ((_, classes), group) in zip(names, groups.items(), strict=True)]


def _place(run: Run, runs: Sequence[Run]) -> tuple | None:
    """Data set and classes; None without a configuration. A run that has not been evaluated yet, whose configuration
    need not name its classes, belongs to the first other one of its data set that it can belong to."""
    name = str(run.setting("dataset.name") or "")
    if not name:
        return None
    if run.evaluations:
        return name, run.classes
    others = (other.classes for other in runs if other.evaluations and other.setting("dataset.name") == name)
    return name, next((each for each in others if not run.classes or set(each) == set(run.classes)), run.classes)


def _corpus(name: str, classes: tuple[str, ...], runs: Sequence[Run]) -> Corpus:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if run.setting("dataset.name"):
            groups.setdefault(json.dumps(_training(run), default=str), []).append(run)
    ways = sorted(groups.values(), key=lambda group: _rank(group[0]))
    settings = [_training(group[0]) for group in ways]
    labels = _labels([group[0] for group in ways], settings)
    families = [json.dumps(_but_defence(each), default=str) for each in settings]
    first = 0 if ways and not ways[0][0].setting("defence.training") else 1  # 0 is nature's, in every report
    names = naming([run for group in ways for run in group])
    models = [
        Model(label, _against(group[0]), group, number, family, names)
        for number, (label, group, family) in enumerate(zip(labels, ways, families, strict=True), start=first)
    ]
    return Corpus(name, classes, runs, models, _differing(labels, settings), names.notes)


def _training(run: Run) -> dict[str, Any]:
    """What decides the trained weights, but for the seed: settings, and the hashes of the user's own code."""
    found: dict[str, Any] = {}
    for key in TRAINING:
        value, idle = run.config.get(key), IDLE.get(key, ())
        found[key] = {k: v for k, v in value.items() if k not in idle} if isinstance(value, dict) else value
    found |= {"defence": run.setting("defence.training"), "code": run.summary.get("code")}
    # What a report says of a corpus, also of the parts of mixed ones, decides nothing.
    return {
        key: value
        for key, value in sorted(flat(found).items())
        if not re.fullmatch(r"dataset\.(.*\.)?(credit|language_code)", key)
    }


def _but_defence(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if not key.startswith("defence")}


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted keys."""
    if not isinstance(node, dict):
        return {prefix: node}
    return {key: v for name, part in node.items() for key, v in flat(part, f"{prefix}.{name}".strip(".")).items()}


def _against(run: Run) -> str | None:
    return run.setting("defence.training.attack.name")


def _label(run: Run) -> str:
    """`nature`, `AT-PGD`, or the own name of another training objective."""
    training = run.setting("defence.training")
    if not training:
        return "nature"
    attack = attack_title(_against(run) or "")
    if str(training.get("_target_")).rpartition(".")[2].startswith("Adversarial"):
        return f"AT-{attack or 'unknown'}"
    return f"{short(training)} {attack}".rstrip()


def _rank(run: Run) -> tuple:
    """Nature first, then as attacks are ordered."""
    against = _against(run)
    return (bool(run.setting("defence.training")), conditions.place(against), str(against))


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
    for key in _distinct([_but_defence(each) for each in settings]):
        for label, each in zip(labels, settings, strict=True):
            found.setdefault(key, {}).setdefault(_brief(each.get(key)), []).append(label)
    return found
