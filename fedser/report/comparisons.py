"""Paired tests on the same test utterances: between two models, and with and without a defence."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

import pandas as pd

from fedser import statistics
from fedser.report.conditions import PAPER_ATTACKS, attack_title, title
from fedser.report.estimates import Estimate
from fedser.report.models import Corpus
from fedser.report.tables import signed
from fedser.report.tabular import MISSING, Cell, Table

REPEATS = 10_000  # fewer could give no p that is small enough to stand a correction
ALL_PAIRS_UP_TO = 5  # models; of more each is compared with the first only
CAPTION = (
    "Difference of UAR in points, A − B, with a 95 % interval by resampling speakers (paired bootstrap). p: of that "
    "bootstrap; of McNemar's exact test on accuracy (beside it the clips that only A, only B has right); both "
    "corrected (Holm) for the rows of the same test data, or of the same model and question, bold below 0.05. z: the "
    "paper's one-tailed test that the greater UAR is greater, for comparison only, as it takes a UAR for a "
    "proportion and the clips for different ones."
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


def _defences(corpus: Corpus) -> Iterable[Pair]:
    """The paper's claim that randomisation helps, and what an attacker who knows of it makes of that."""
    attacks = dict.fromkeys([*PAPER_ATTACKS, *filter(None, [corpus.focus])])
    kinds = {"adversarial": "not worn", "randomised_adversarial": "worn, oblivious", "adaptive": "worn, adaptive"}
    against = [("randomised_adversarial", "adversarial"), ("adaptive", "randomised_adversarial")]
    for model in corpus.models:
        for attack in attacks:
            for a, b in against:
                first, second = (model.estimates.get(f"{kind}/{attack}") for kind in (a, b))
                if first and second:
                    shared = f"{model.label}, {attack_title(attack)}"
                    yield Pair(f"{model.label} {a}", shared, kinds[a], kinds[b], first, second)


def _table(name: str, heading: str, shared: str, pairs: Sequence[Pair]) -> Table:
    found = [(pair, _test(pair)) for pair in pairs]
    kept = [(pair, result) for pair, result in found if result]
    data = pd.DataFrame([{"family": p.family, "shared": p.shared, "a": p.a, "b": p.b, **result} for p, result in kept])
    for column in ("bootstrap_p", "mcnemar_p") if kept else ():
        data[f"{column}_holm"] = data.groupby("family")[column].transform(_holm)
    notes = []
    if missing := len(found) - len(kept):
        notes.append(f"{missing} pairs are left out: their runs share no test utterance, or hold no utterances.csv.")
    columns = [shared, "A", "B", "A − B", "p, bootstrap", "p, McNemar", "only A, B", "z", "p, z-test", "clips"]
    rows = [_row(row) for row in data.to_dict("records")]
    return Table(name, heading, CAPTION, columns, rows, data, words=3, notes=notes)


def _holm(p: pd.Series) -> pd.Series:
    """Corrected for one family; where a p-value is unknown it stays so."""
    known = p.dropna()
    return pd.Series(statistics.holm(known), known.index).reindex(p.index) if len(known) else p


def _test(pair: Pair) -> dict | None:
    """All tests of one pair; None where they share no utterance."""
    a, b = pair.first.observations, pair.second.observations
    if a is None or b is None:
        return None
    both = a.join(b["correct"].rename("correct_b"), how="inner")
    if both.empty:
        return None
    columns = (both["correct"], both["correct_b"], both["label"], both["speaker"])
    paired = statistics.paired_bootstrap(*columns, repeats=REPEATS)
    mcnemar = statistics.mcnemar(both["correct"], both["correct_b"])
    high, low = sorted((_uar(both, "correct"), _uar(both, "correct_b")), reverse=True)
    z = statistics.z_test(high, low, len(both), len(both))
    return {
        "difference": paired.difference,
        "low": paired.interval.low,
        "high": paired.interval.high,
        "bootstrap_p": paired.p,
        "mcnemar_p": mcnemar.p,
        "only_a": mcnemar.b,
        "only_b": mcnemar.c,
        "z": z.z,
        "z_p": z.p,
        "utterances": len(both),
    }


def _uar(frame: pd.DataFrame, column: str) -> float:
    return statistics.uar(frame[column], frame["label"])


def _row(row: dict) -> list[Cell | str]:
    ends = f"[{signed(row['low'])}, {signed(row['high'])}]" if row["low"] == row["low"] else ""
    difference = Cell(signed(row["difference"]), (ends,) if ends else (), row["difference"])
    adjusted = [_p(row["bootstrap_p_holm"]), _p(row["mcnemar_p_holm"])]
    z = [Cell(f"{row['z']:.2f}", value=row["z"]), replace(_p(row["z_p"]), kind="")]
    clips = Cell(str(row["utterances"]), value=row["utterances"])
    return [row["shared"], row["a"], row["b"], difference, *adjusted, f"{row['only_a']}, {row['only_b']}", *z, clips]


def _p(p: float) -> Cell:
    """Bold where it stands at the 5 % level."""
    if p != p:
        return Cell(MISSING)
    return Cell("< 0.001" if p < 0.001 else f"{p:.3f}", value=p, kind="significant" if p < 0.05 else "")
