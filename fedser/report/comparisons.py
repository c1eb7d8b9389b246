"""Paired tests on the same test utterances: between two models, and with and without a defence."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd

from fedser.evaluation import statistics
from fedser.report.conditions import ATTACKED, PAPER_ATTACKS, attack_title, title
from fedser.report.estimates import Estimate
from fedser.report.models import Corpus, Model
from fedser.report.tables import p_text, signed
from fedser.report.tabular import Cell, Table

REPEATS = 20_000  # fewer could give no p of ten speakers that is small enough to stand a correction for ten tests
ALL_PAIRS_UP_TO = 5  # models; of more each is compared with the first only
CAPTION = (
    "Difference of UAR in points, A − B, with a 95 % interval by resampling speakers (paired bootstrap, seed by seed). "
    "p: of that bootstrap, corrected (Holm) for the rows of the same test data, or of the same model and question, "
    "bold below 0.05; ≤ where so many resamples can show no smaller one. For comparison only, as they take clips for "
    "independent: McNemar's exact test on accuracy, corrected alike, with the clips that only A, only B has right; and "
    "z, the paper's one-tailed test that the greater UAR is greater, not corrected, which takes a UAR for a proportion."
)


class Pair(NamedTuple):
    """Two estimates to compare, the words for what they share and what they are, and with which tests they belong."""

    family: str
    shared: str
    a: str
    b: str
    first: Estimate
    second: Estimate


def tables(corpus: Corpus) -> list[Table]:
    """Models against each other, then each model with the defence and without."""
    models = _table("tests-models", "Models compared", "Test data", list(_models(corpus)))
    defences = _table("tests-defence", "What the randomisation changes", "Model and attack", list(_defences(corpus)))
    return [models, defences]


def _models(corpus: Corpus) -> Iterable[Pair]:
    pairs = list(combinations(corpus.models, 2))
    if len(corpus.models) > ALL_PAIRS_UP_TO:
        pairs = [(model, corpus.models[0]) for model in corpus.models[1:]]
    for name in corpus.looked_at:
        for second, first in pairs:
            if name in first.estimates and name in second.estimates:
                estimates = (first.estimates[name], second.estimates[name])
                yield Pair(name, title(name), first.label, second.label, *estimates)
    yield from _own_attacks(corpus)


def _own_attacks(corpus: Corpus) -> Iterable[Pair]:
    """The paper's claim that adversarial training helps against the attack that it was done with."""
    for family in corpus.families:
        nature = next((model for model in family if model.against is None), None)
        for kind in ATTACKED[:2]:
            for model in family:
                name = f"{kind}/{model.against}"
                both = nature and name in model.estimates and name in nature.estimates
                if both and name not in corpus.looked_at:
                    estimates = (model.estimates[name], nature.estimates[name])
                    yield Pair(f"own {kind} {nature.label}", title(name), model.label, nature.label, *estimates)


WORN = {"randomised_adversarial": "worn, oblivious", "adaptive": "worn, adaptive"}
AGAINST = [
    ("randomised_adversarial", "adversarial"),
    ("adaptive", "randomised_adversarial"),
    ("adaptive", "adversarial"),
]


def _defences(corpus: Corpus) -> Iterable[Pair]:
    """The paper's claims that randomisation costs little and helps, and what who knows of it makes of the latter."""
    for model in corpus.models:
        worn, unworn = (model.estimates.get(name) for name in ("randomised", "original"))
        if worn and unworn:
            yield Pair(f"{model.label} clean", f"{model.label}, no attack", "worn", "not worn", worn, unworn)
        for attack in PAPER_ATTACKS:
            yield from _worn(model, attack_title(attack), dict.fromkeys(ATTACKED, attack))
        yield from _worn(model, "the strongest", {kind: corpus.strongest(kind) for kind in ATTACKED})


def _worn(model: Model, told: str, attacks: Mapping[str, str | None]) -> Iterable[Pair]:
    """One model under these attacks of each kind: worn or not, oblivious or adaptive."""

    def words(kind: str) -> str:
        attack = attack_title(attacks[kind])
        return WORN.get(kind, "not worn") + (f" ({attack})" if attack != told else "")

    for kinds in AGAINST:
        estimates = [model.estimates.get(f"{kind}/{attacks[kind]}") for kind in kinds]
        if all(estimates):
            yield Pair(f"{model.label} {kinds}", f"{model.label}, {told}", *map(words, kinds), *estimates)


def _table(name: str, heading: str, shared: str, pairs: Sequence[Pair]) -> Table:
    found = [(pair, _test(pair)) for pair in pairs]
    kept = [(pair, result) for pair, result in found if result]
    data = pd.DataFrame([{"family": p.family, "shared": p.shared, "a": p.a, "b": p.b, **result} for p, result in kept])
    for column in ("bootstrap_p", "mcnemar_p") if kept else ():
        data[f"{column}_holm"] = data.groupby("family")[column].transform(_holm)
    notes = []
    if missing := len(found) - len(kept):
        notes.append(f"{missing} pairs are left out: no seed of both tests the same clips, or has an utterances.csv.")
    columns = [shared, "A", "B", "A − B", "p (Holm)", "p, McNemar (Holm)", "only A, B", "z", "p, z-test", "clips"]
    rows = [_row(row) for row in data.to_dict("records")]
    return Table(name, heading, CAPTION, columns, rows, data, words=3, notes=notes)


def _holm(p: pd.Series) -> pd.Series:
    """Corrected for one family; where a p-value is unknown it stays so."""
    known = p.dropna()
    return pd.Series(statistics.holm(known), known.index).reindex(p.index) if len(known) else p


def _test(pair: Pair) -> dict | None:
    """All tests of one pair, on what the same seeds tested; None where that is nothing."""
    a, b = pair.first.observations, pair.second.observations
    if a is None or b is None:
        return None
    both = a.merge(b[["seed", "utterance", "correct"]], on=["seed", "utterance"], suffixes=("_a", "_b"))
    if both.empty:
        return None
    columns = (both[name] for name in ("correct_a", "correct_b", "label", "speaker", "seed"))
    paired = statistics.paired_bootstrap(*columns, repeats=REPEATS)
    clips = both.groupby("utterance")[["correct_a", "correct_b"]].mean()  # each once, with the mean of its seeds
    mcnemar = statistics.mcnemar(clips["correct_a"], clips["correct_b"])
    high, low = sorted((_uar(both, "correct_a"), _uar(both, "correct_b")), reverse=True)
    z = statistics.z_test(high, low, len(clips), len(clips))
    return {
        "difference": paired.difference,
        "low": paired.interval.low,
        "high": paired.interval.high,
        "bootstrap_p": paired.p,
        "bootstrap_p_at_most": paired.p == paired.least,
        "mcnemar_p": mcnemar.p,
        "only_a": mcnemar.b,
        "only_b": mcnemar.c,
        "z": z.z,
        "z_p": z.p,
        "utterances": len(clips),
    }


def _uar(frame: pd.DataFrame, column: str) -> float:
    """The mean of the seeds' UARs."""
    return float(np.mean([statistics.uar(rows[column], rows["label"]) for _, rows in frame.groupby("seed")]))


def _row(row: dict) -> list[Cell | str]:
    ends = f"[{signed(row['low'])}, {signed(row['high'])}]" if row["low"] == row["low"] else ""
    difference = Cell(signed(row["difference"]), (ends,) if ends else (), row["difference"])
    p, at_most = row["bootstrap_p_holm"], row["bootstrap_p_at_most"]
    adjusted = [Cell(p_text(p, at_most), value=p, kind="significant" if p < 0.05 else ""), _p(row["mcnemar_p_holm"])]
    z = [Cell(f"{row['z']:.2f}", value=row["z"]), _p(row["z_p"])]
    clips = Cell(str(row["utterances"]), value=row["utterances"])
    return [row["shared"], row["a"], row["b"], difference, *adjusted, f"{row['only_a']}, {row['only_b']}", *z, clips]


def _p(p: float) -> Cell:
    return Cell(p_text(p), value=p)
