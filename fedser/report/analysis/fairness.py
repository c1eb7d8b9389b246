"""How differently models treat the sexes, and single speakers."""

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
NAMED = 10  # of those who are left out


@dataclass(frozen=True, eq=False)
class Treated:
    """A model under one condition: its clients by sex, and each alone. None where there are no two groups."""

    model: Model
    estimate: Estimate
    unseen: bool  # whether they are speakers whom nobody trained on
    sex: Grouped | None
    speaker: Grouped | None

    @functools.cached_property
    def record(self) -> dict[str, Any]:
        """Every metric as a row of a CSV file: the worst pair, the mean over pairs and, by sex, how far to trust it."""
        names = {"model": self.model.label, "condition": self.estimate.condition.name}
        row: dict[str, Any] = names | {"unseen": self.unseen}
        for name, metric in METRICS.items():
            for by, groups in (("sex", self.sex), ("speaker", self.speaker)):
                if groups:
                    row |= {f"{name}/{by}": groups.figure(metric), f"{name}/{by}/mean": groups.figure(metric, "mean")}
        for name, trust in self.sex.trust({name: METRICS[name] for name in SHOWN}).items() if self.sex else ():
            row |= {f"{name}/sex/low": trust.interval.low, f"{name}/sex/high": trust.interval.high}
            row |= {f"{name}/sex/chance": trust.chance, f"{name}/sex/p": trust.p}
        return row


@functools.lru_cache(maxsize=4)
def treated(corpus: Corpus) -> list[Treated]:
    """Every model under every condition that clients' matrices are known of; varied attacks only if looked at."""
    found = []
    for name in (name for name in corpus.conditions if name in corpus.looked_at or not parse(name).varied):
        for model in corpus.models:
            for unseen, estimate in enumerate((model.estimates.get(name), model.unseen.get(name))):
                counts = _by_client(estimate) if estimate else {}
                by_sex = _grouped(counts, _sexes(estimate)) if counts else None
                alone = _grouped(counts, {client: client for client in counts})
                if by_sex or alone:
                    found.append(Treated(model, estimate, bool(unseen), by_sex, alone))
    return found


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
    """How many speakers each sex has, and who is left out."""
    groups = [each.sex for each in rows if each.sex]
    sizes = dict.fromkeys(" and ".join(f"{n} {sex}" for sex, n in each.sizes.items()) for each in groups)
    out = sorted({name for each in rows for by in (each.sex, each.speaker) if by for name in by.left_out})
    named = ", ".join(out[:NAMED]) + f" and {len(out) - NAMED} more" * (len(out) > NAMED)
    lines = [f"By sex: {' or '.join(sizes)} {who}s."] if sizes else []
    return lines + ([f"Left out, of unknown sex or with fewer than {CLIPS} clips in a seed: {named}."] if out else [])


def _by_client(estimate: Estimate) -> dict[str, np.ndarray]:
    """Utterances [seeds, true, predicted] of each client that has any; nothing where a seed's are not known so."""
    seeds = [(measure.record.get("by_client") or {}, measure.draws) for measure in estimate.measures]
    if not all(matrices for matrices, _ in seeds):
        return {}
    nothing = np.zeros_like(estimate.matrix)
    clients = dict.fromkeys(client for matrices, _ in seeds for client, matrix in matrices.items() if np.any(matrix))
    return {each: np.array([np.asarray(m.get(each, nothing)) / draws for m, draws in seeds]) for each in clients}


def _sexes(estimate: Estimate) -> dict[str, str]:
    """Of each client; empty where it is not known, or not the same in every seed."""
    found: dict[str, set[str]] = {}
    for client, sex in (pair for measure in estimate.measures for pair in measure.sexes.items()):
        found.setdefault(client, set()).add(sex)
    return {client: next(iter(sexes)) if len(sexes) == 1 else "" for client, sexes in found.items()}


def _grouped(counts: Mapping[str, np.ndarray], groups: Mapping[str, str]) -> Grouped | None:
    try:
        return grouped(counts, groups, CLIPS)
    except InputError:  # a client or a sex alone has nothing to be held beside
        return None
