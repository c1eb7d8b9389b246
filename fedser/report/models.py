"""Runs → corpora → models: the runs of one model differ in nothing but their seed and in what was measured."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fedser.config.validation import has_no_budget
from fedser.report import conditions
from fedser.report.conditions import Condition, parse
from fedser.report.estimates import Estimate, Measure
from fedser.report.runs import Evaluation, Run
from fedser.report.usual import Usual, usual

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
    family: str = ""  # models of one family differ in nothing but adversarial training
    usual: Usual = field(default_factory=Usual)  # how its corpus calls what was measured

    @cached_property
    def measures(self) -> dict[str, dict[Any, Measure]]:
        """Per condition and seed the measure that counts."""
        found: dict[str, dict[Any, Measure]] = {}
        for run in self.runs:
            for measure in self.usual.measures(run):
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
            seed, curve = run.setting("seed"), self.usual.curve(run, condition)
            if curve[0] and (seed not in found or curve[0][-1] > found[seed][0][-1]):
                found[seed] = curve
        return {seed: found[seed] for seed in sorted(found, key=str)}


@dataclass(frozen=True, eq=False)
class Corpus:
    """What can be compared: runs on the same data with the same classes."""

    name: str
    classes: tuple[str, ...]
    runs: Sequence[Run]
    models: Sequence[Model]
    notes: list[str] = field(default_factory=list)  # what a reader should know before comparing

    @property
    def chance(self) -> float | None:
        """The UAR of guessing."""
        return 1 / len(self.classes) if self.classes else None

    @property
    def families(self) -> list[list[Model]]:
        """Models that differ in adversarial training only."""
        names = dict.fromkeys(model.family for model in self.models)
        return [[model for model in self.models if model.family == name] for name in names]

    @cached_property
    def conditions(self) -> list[str]:
        return conditions.in_order(name for model in self.models for name in model.estimates)

    def attacks(self, *kinds: str, varied: bool = False) -> list[str]:
        """Attacks (with their varied settings, if asked) that some model was tested under, of these kinds or any."""
        parsed = [parse(name) for name in self.conditions]
        chosen = [c for c in parsed if c.attack and (not kinds or c.kind in kinds) and (varied or not c.varied)]
        return list(dict.fromkeys(c.variant for c in chosen))

    def settings(self, variant: str) -> dict[str, Any]:
        """The attack's settings; empty if no evaluation tells them."""
        return self._attacks.get(variant, {}).get("settings") or {}

    def threat(self, variant: str) -> str:
        """The attack's threat model in a line, as it printed it; empty if none did."""
        return str(self._attacks.get(variant, {}).get("threat") or "")

    @cached_property
    def _attacks(self) -> dict[str, dict[str, Any]]:
        """Per attack, with its varied settings, what the first measure that counts tells of it."""
        by_seed = (seeds for model in self.models for seeds in model.measures.values())
        measures = [measure for seeds in by_seed for measure in seeds.values() if measure.attack]
        return {measure.condition.variant: measure.attack for measure in reversed(measures)}

    def eps(self, condition: Condition) -> float | None:
        """The L∞ budget in σ; None where there is none."""
        eps = (self.settings(condition.variant) or condition.settings).get("eps")
        return None if eps is None or has_no_budget(condition.attack) else float(eps)

    def strongest(self, kind: str) -> str | None:
        """Of the attacks with a budget that most models were tested under so, the one that leaves least on average."""
        found: dict[str, list[float]] = {}
        for model in self.models:
            for name in self.attacks(kind):
                estimate = model.estimates.get(f"{kind}/{name}")
                if estimate and estimate.representative and self.eps(parse(f"{kind}/{name}")) is not None:
                    found.setdefault(name, []).append(estimate.uar)
        return min(found, key=lambda name: (-len(found[name]), sum(found[name]) / len(found[name])), default=None)

    @cached_property
    def looked_at(self) -> list[str]:
        """The conditions that speakers, classes and models are compared under: without attack, and the strongest ones.

        Each kind of attacker has one of its own: what is strongest where nothing is worn need not be so elsewhere.
        """
        found = [(kind, self.strongest(kind)) for kind in conditions.ATTACKED]
        wanted = ["original", "randomised", *(f"{kind}/{attack}" for kind, attack in found if attack)]
        return [name for name in wanted if name in self.conditions]


def corpora(runs: Sequence[Run]) -> list[Corpus]:
    """One corpus per data set and set of classes, in the runs' order."""
    groups: dict[tuple, list[Run]] = {}
    unplaced = []
    for run in runs:
        if run.setting("dataset.name"):
            groups.setdefault((str(run.setting("dataset.name")), run.classes), []).append(run)
        else:
            unplaced.append(run)
    if not groups:
        groups[("unknown corpus", ())] = []
    groups[next(iter(groups))].extend(unplaced)  # they are shown as what they are: rows without a model
    names = _distinct_names(groups)
    if len(groups) > 1:
        log.warning("the runs do not all compare (%s): each has a section of its own", ", ".join(names))
    return [_corpus(name, classes, group) for name, ((_, classes), group) in zip(names, groups.items(), strict=True)]


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
            groups.setdefault(json.dumps(_training(run.config), sort_keys=True, default=str), []).append(run)
    ways = [(group, _flat(json.loads(key))) for key, group in groups.items()]
    ways.sort(key=lambda way: _rank(way[0][0]))
    labels = _labels([group[0] for group, _ in ways], [settings for _, settings in ways])
    families = [json.dumps({k: v for k, v in way.items() if not k.startswith("defence")}) for _, way in ways]
    first = 0 if labels and _against(ways[0][0][0]) is None else 1  # 0 is nature's, in every report
    names = usual([run for group, _ in ways for run in group])
    models = [
        Model(label, _against(group[0]), group, number, family, names)
        for number, (label, (group, _), family) in enumerate(zip(labels, ways, families, strict=True), start=first)
    ]
    notes = [*_notes(models, [settings for _, settings in ways]), *names.notes]
    return Corpus(name, classes, runs, models, notes)


def _training(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide the trained weights, but for the seed."""
    found: dict[str, Any] = {}
    for key in TRAINING:
        value = config.get(key)
        idle = IDLE.get(key, ())
        found[key] = {k: v for k, v in value.items() if k not in idle} if isinstance(value, dict) else value
    return found | {"defence": (config.get("defence") or {}).get("training")}


def _against(run: Run) -> str | None:
    return run.setting("defence.training.attack.name")


def _label(run: Run) -> str:
    if not run.setting("defence.training"):
        return "nature"
    return f"AT-{conditions.attack_title(str(_against(run) or 'unknown'))}"


def _rank(run: Run) -> tuple:
    """Nature first, then as attacks are ordered."""
    known = list(conditions.TITLES)
    against = _against(run)
    if not run.setting("defence.training"):
        return (0, 0, "")
    return (1, known.index(against) if against in known else len(known), str(against))


def _labels(runs: Sequence[Run], settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each model is called; those of one name with the settings in which they differ."""
    plain = [_label(run) for run in runs]
    labels = []
    for label, own in zip(plain, settings, strict=True):
        namesakes = [other for other_label, other in zip(plain, settings, strict=True) if other_label == label]
        differing = [key for key in own if any(other.get(key) != own[key] for other in namesakes)]
        told = ", ".join(f"{key.removeprefix('defence.')}={own[key]}" for key in differing[:2])
        labels.append(f"{label} ({told})" if told else label)
    return labels


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted keys."""
    if not isinstance(node, dict):
        return {prefix: node}
    return {key: value for name, part in node.items() for key, value in _flat(part, _join(prefix, name)).items()}


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _notes(models: Sequence[Model], settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """In what the models differ besides the attack that they were trained against."""
    keys = dict.fromkeys(key for each in settings for key in each if not key.startswith("defence"))
    differing = [key for key in keys if len({str(each.get(key)) for each in settings}) > 1]
    notes = []
    for key in differing[:4]:
        told = ", ".join(f"{model.label}: {each.get(key)}" for model, each in zip(models, settings, strict=True))
        notes.append(f"The models do not only differ in their defence but also in {key} ({told}).")
    return notes
