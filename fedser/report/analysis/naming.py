"""What an evaluation's conditions are called beside those of others.

Evaluations may use one name for different things: `pgd` is whatever the configuration of their run says it is. In a
corpus it is what most of them have, and every other one is named by what differs: `pgd@eps=0.1`. What was measured
with another randomisation than most have is left out.
"""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedser.report.analysis.conditions import Condition, parse
from fedser.report.analysis.estimates import Measure
from fedser.report.analysis.runs import Evaluation, Run

HANDED_ON = ("eps", "labels", "box")  # by an attack that is made of others to all of them, whatever theirs say
Seen = dict[tuple[str, str], list]  # per attack and key every value that a name had to hold


@dataclass(frozen=True, eq=False)
class Naming:
    """How a corpus calls what its evaluations measured."""

    variants: Mapping[tuple[Evaluation, str], str] = field(default_factory=dict)  # where it is not as in the file
    otherwise: Mapping[Evaluation, str] = field(default_factory=dict)  # with another randomisation: how it differs
    notes: Sequence[str] = ()  # which runs and evaluations these are

    def condition(self, evaluation: Evaluation, name: str) -> Condition | None:
        """The condition that the file calls `name`; None where its randomisation is another.

        An attack that always knows of the randomisation (EOT-PGD) is adaptive, by whatever name it was asked for.
        """
        condition = parse(name)
        if condition.randomised and evaluation in self.otherwise:
            return None
        if condition.kind == "randomised_adversarial" and evaluation.attack(condition.variant).settings.get("adaptive"):
            condition = condition._replace(kind="adaptive")
        variant = self.variants.get((evaluation, condition.variant), condition.variant)
        return parse(f"{condition.kind}/{variant}") if condition.attack else condition

    def measures(self, run: Run) -> list[Measure]:
        """Everything that a run's evaluations measured and that can be compared."""
        found = [(evaluation, name) for evaluation in run.evaluations for name in evaluation.conditions]
        named = [(evaluation, self.condition(evaluation, name), name) for evaluation, name in found]
        return [Measure(run, evaluation, condition, name) for evaluation, condition, name in named if condition]

    def curve(self, run: Run, condition: str) -> tuple[list[int], list[float]]:
        """`run.curve`, empty where the run's own evaluation means something else by this condition."""
        own = [evaluation for evaluation in run.evaluations if evaluation.folder == run.folder]
        return run.curve(condition) if all(self.condition(e, condition) == parse(condition) for e in own) else ([], [])


def naming(runs: Sequence[Run]) -> Naming:
    """Of what is equally frequent the first counts."""
    pairs = [(run, evaluation) for run in runs for evaluation in run.evaluations]
    otherwise = _otherwise([evaluation for _, evaluation in pairs])
    notes = [
        f"{run.name}: the evaluation {evaluation.name if evaluation.folder == run.folder else evaluation.folder.name} "
        f"has another randomisation than most ({otherwise[evaluation]}); what it measured with it is left out."
        for run, evaluation in pairs
        if evaluation in otherwise
    ]
    return Naming(_variants(runs), otherwise, notes)


def _otherwise(evaluations: Sequence[Evaluation]) -> dict[Evaluation, str]:
    inference = {
        evaluation: _canonical(evaluation.content["inference"])
        for evaluation in evaluations
        if evaluation.content.get("inference") and any(parse(name).randomised for name in evaluation.conditions)
    }
    most = _most(inference.values())
    return {evaluation: _words(own, most) for evaluation, own in inference.items() if own != most}


def _words(own: dict, other: dict) -> str:
    differences = sorted(_differences({"inference": own}, {"inference": other}))
    return ", ".join(f"{key.removeprefix('inference.')}={short(value)}" for key, value in differences)


def _variants(runs: Sequence[Run]) -> dict[tuple[Evaluation, str], str]:
    """What each attack of each evaluation is called; where its settings are not known, as in the file."""
    found: dict[tuple[Evaluation, str], str] = {}
    most: dict[str, dict | None] = {}
    seen: Seen = {}
    for evaluation in (evaluation for run in runs for evaluation in run.evaluations):
        for variant in evaluation.attacks:
            attack, settings = variant.partition("@")[0], _essential(evaluation, variant)
            if attack not in most:
                most[attack] = _most_settings(runs, attack)
            if settings and most[attack] is not None:
                varied = _varied(attack, settings, most[attack], seen)
                found[evaluation, variant] = attack + (f"@{varied}" if varied else "")
    return found


def _most_settings(runs: Sequence[Run], attack: str) -> dict | None:
    """The attack as most evaluations have it unvaried; where none has, as most configurations do."""
    tested = [_essential(evaluation, attack) for run in runs for evaluation in run.evaluations]
    configured = [
        run.setting("attack") if run.setting("attack.name") == attack else run.setting(f"attacks.{attack}")
        for run in runs
    ]
    return _most(list(filter(None, tested)) or [_settings(each) for each in configured if each])


def _most(values: Iterable[Any]) -> Any:
    """The most frequent one, None of none."""
    texts = Counter(json.dumps(value, sort_keys=True) for value in values)
    return json.loads(texts.most_common(1)[0][0]) if texts else None


def _essential(evaluation: Evaluation, variant: str) -> dict[str, Any]:
    """What decides an attack's numbers: no budget where it means nothing."""
    attack = evaluation.attack(variant)
    return {key: value for key, value in _settings(attack.settings).items() if key != "eps" or attack.eps is not None}


def _settings(attack: Mapping[str, Any]) -> dict[str, Any]:
    """Without its name and what is only checked."""
    return {key: _canonical(value, HANDED_ON) for key, value in attack.items() if key not in ("name", "victim")}


def _canonical(node: Any, without: Sequence[str] = ()) -> Any:
    """The same value for what means the same: 1 and 1.0, true and "true"."""
    if isinstance(node, dict):
        return {key: _canonical(value, without) for key, value in node.items() if key not in without}
    if isinstance(node, list | tuple):
        return [_canonical(value, without) for value in node]
    if isinstance(node, bool):
        return str(node).lower()
    return float(node) if isinstance(node, int) else node if isinstance(node, float | None) else str(node)


def _differences(own: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Dotted keys under which two settings differ, with the own values; of different things that these are others."""
    for key in own | other:
        value, counterpart = own.get(key), other.get(key)
        both = isinstance(value, dict) and isinstance(counterpart, dict)
        if both and all(value.get(each) == counterpart.get(each) for each in ("name", "_target_")):
            yield from _differences(value, counterpart, f"{prefix}{key}.")
        elif value != counterpart:
            yield prefix + key, value


def _varied(attack: str, own: dict, most: dict, seen: Seen) -> str:
    """`eps=0.1,steps=20`: what differs, the budget first. Values of one short form are numbered."""
    parts = []
    for key, value in sorted(_differences(own, most), key=lambda pair: (pair[0] != "eps", pair[0])):
        values = seen.setdefault((attack, key), [])
        if value not in values:
            values.append(value)
        place = [each for each in values if short(each) == short(value)].index(value)
        parts.append(f"{key.removeprefix('method.')}={short(value)}" + (f" #{place + 1}" if place else ""))
    return ",".join(parts)


def short(value: Any) -> str:
    """A short form without the signs that part a name: of a path its last part, of nested settings what they are of."""
    if isinstance(value, dict):
        value = value.get("name") or str(value.get("_target_") or "other").rpartition(".")[2]
    if isinstance(value, list | tuple):
        return f"[{' '.join(map(short, value))}]"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else re.sub("[@,=]", "-", str(value).rstrip("/").rpartition("/")[2])


def numbered(names: Iterable[str]) -> list[str]:
    """These names, those that are there already with a number: `a`, `a #2`."""
    taken: list[str] = []
    for name in names:
        others = (f"{name} #{number}" for number in itertools.count(2))
        taken.append(name if name not in taken else next(other for other in others if other not in taken))
    return taken
