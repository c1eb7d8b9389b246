"""How differently models treat the sexes, single speakers, and groups by other columns."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedser.errors import InputError
from fedser.evaluation.fairness import METRICS, Grouped, grouped
from fedser.report.analysis.conditions import parse
from fedser.report.analysis.estimates import CLIPS, Estimate
from fedser.report.analysis.models import Corpus, Model

SHOWN = tuple(METRICS)[:3]
ALONE = "speaker"  # what each client alone goes by
NAMED = 10  # of those who are left out


@dataclass(frozen=True, eq=False)
class Treated:
    """A model under one condition: its clients by sex, each alone (`speaker`), and the groups that clients told of by
    column, where there are two."""

    model: Model
    estimate: Estimate
    unseen: bool  # whether they are speakers whom nobody trained on
    groups: Mapping[str, Grouped]
    least: int  # clips of a group that counts

    @functools.cached_property
    def record(self) -> dict[str, Any]:
        """Every metric as a row of a CSV file: the worst pair, the mean over pairs and, but for single speakers,
        how far to trust it."""
        names = {"model": self.model.label, "condition": self.estimate.condition.name}
        row: dict[str, Any] = names | {"unseen": self.unseen}
        for name, metric in METRICS.items():
            for by, groups in self.groups.items():
                row |= {f"{name}/{by}": groups.figure(metric), f"{name}/{by}/mean": groups.figure(metric, "mean")}
        for by, groups in self.groups.items():
            trusted = {} if by == ALONE else groups.trust({name: METRICS[name] for name in SHOWN})
            for name, trust in trusted.items():
                row |= {f"{name}/{by}/low": trust.interval.low, f"{name}/{by}/high": trust.interval.high}
                row |= {f"{name}/{by}/chance": trust.chance, f"{name}/{by}/p": trust.p}
        return row


@functools.lru_cache(maxsize=4)
def treated(corpus: Corpus) -> list[Treated]:
    """Every model under every condition that clients' matrices are known of; varied attacks only if looked at."""
    found = []
    for name in (name for name in corpus.conditions if name in corpus.looked_at or not parse(name).varied):
        for model in corpus.models:
            for unseen, estimate in enumerate((model.estimates.get(name), model.unseen.get(name))):
                if estimate and (groups := _groups(estimate)):
                    found.append(Treated(model, estimate, bool(unseen), groups, _least(estimate)))
    return found


def _groups(estimate: Estimate) -> dict[str, Grouped]:
    """By sex, speaker and other columns, where there are two; what clients told of goes before what they are."""
    counts, least = _by_client(estimate), _least(estimate)
    alone = {client: client for client in counts}
    made = {"sex": _grouped(counts, _sexes(estimate), least), ALONE: _grouped(counts, alone, least)} if counts else {}
    for column in told_of(estimate):
        parts = _by_group(estimate, column)
        made[column] = _grouped(parts, {part: part[0] for part in parts}, least)
    return {by: each for by, each in made.items() if each}


def shown(corpus: Corpus) -> list[Treated]:
    """Those without attack, and under the strongest without randomisation and the strongest that knows of it."""
    kinds = {name: parse(name).kind for name in corpus.looked_at}
    names = [name for name, kind in kinds.items() if kind in ("original", "adversarial", "adaptive")]
    return [each for each in treated(corpus) if each.estimate.condition.name in names]


def whose(corpus: Corpus) -> str:
    """What a client is: a speaker, where clients are dealt out so."""
    dealt = {run.setting("partition.name") for run in corpus.runs}
    return "speaker" if dealt <= {"speaker", None} else "client"


def told(rows: Sequence[Treated], who: str) -> list[str]:
    """How many speakers each group has, and who is left out."""
    lines = []
    for by in dict.fromkeys(by for each in rows for by in each.groups if by != ALONE):
        groups = [each.groups[by] for each in rows if by in each.groups]
        form = "{1} {0}" if by == "sex" else "{1} of {0}"
        sizes = dict.fromkeys(" and ".join(form.format(*each) for each in group.sizes.items()) for group in groups)
        lines.append(f"By {by}: {' or '.join(sizes)} {who}s.")
    out = sorted({name for each in rows for group in each.groups.values() for name in group.left_out})
    named = ", ".join(out[:NAMED]) + f" and {len(out) - NAMED} more" * (len(out) > NAMED)
    least = "/".join(map(str, sorted({each.least for each in rows})))
    return lines + ([f"Left out, of unknown sex or with fewer than {least} clips in a seed: {named}."] if out else [])


def _by_client(estimate: Estimate) -> dict[str, np.ndarray]:
    """Utterances [seeds, true, predicted] of each client that has any; nothing where a seed's are not known so."""
    seeds = [(measure.record.get("by_client") or {}, measure.draws) for measure in estimate.measures]
    if not all(matrices for matrices, _ in seeds):
        return {}
    nothing = np.zeros_like(estimate.matrix)
    clients = dict.fromkeys(client for matrices, _ in seeds for client, matrix in matrices.items() if np.any(matrix))
    return {each: np.array([np.asarray(m.get(each, nothing)) / draws for m, draws in seeds]) for each in clients}


def told_of(estimate: Estimate) -> list[str]:
    """The columns that clients counted by in every seed."""
    seeds = [measure.record.get("by_group") or {} for measure in estimate.measures]
    return [column for column in seeds[0] if all(column in each for each in seeds)]


def _by_group(estimate: Estimate, column: str) -> dict[tuple[str, str], np.ndarray]:
    """Utterances [seeds, true, predicted] of each value of a column at each client that told of it."""
    nothing = np.zeros_like(estimate.matrix)
    found: dict[tuple[str, str], np.ndarray] = {}
    for place, measure in enumerate(estimate.measures):
        for value, clients in measure.record["by_group"][column].items():
            for client, matrix in clients.items():
                part = found.setdefault((value, client), np.array([nothing] * len(estimate.measures)))
                part[place] = np.asarray(matrix) / measure.draws
    return found


def _least(estimate: Estimate) -> int:
    """How many clips a group must have, as the evaluations say."""
    settings = [measure.evaluation.content.get("evaluation") or {} for measure in estimate.measures]
    return max(each.get("min_support") or CLIPS for each in settings)


def _sexes(estimate: Estimate) -> dict[str, str]:
    """Of each client; empty where it is not known, or not the same in every seed."""
    found: dict[str, set[str]] = {}
    for client, sex in (pair for measure in estimate.measures for pair in measure.sexes.items()):
        found.setdefault(client, set()).add(sex)
    return {client: next(iter(sexes)) if len(sexes) == 1 else "" for client, sexes in found.items()}


def _grouped(counts: Mapping[Any, np.ndarray], groups: Mapping[Any, str], least: int) -> Grouped | None:
    try:
        return grouped(counts, groups, least)
    except InputError:  # a client or a sex alone has nothing to be held beside
        return None
