"""Paired tests on the same test utterances: between two models, and with and without a defence."""

from collections.abc import Iterable, Mapping
from itertools import combinations
from math import nan
from typing import NamedTuple

import numpy as np
import pandas as pd

from fedser.evaluation import statistics
from fedser.report.analysis.conditions import ATTACKED, PAPER_ATTACKS, attack_title, title
from fedser.report.analysis.estimates import Estimate
from fedser.report.analysis.models import Corpus, Model

REPEATS = 20_000  # fewer could give no p of ten speakers that is small enough to stand a correction for ten tests
ALL_PAIRS_UP_TO = 5  # models; of more each is compared with the first only
TELLING = 3  # trainings, from which on a t-test of their differences says anything
WITH = {"adversarial": "without", "randomised_adversarial": "with, oblivious", "adaptive": "with, adaptive"}


class Pair(NamedTuple):
    """Two estimates to compare, None where one was not measured; the words for what they share and what they are, and
    with which tests they belong."""

    family: str
    shared: str
    a: str
    b: str
    first: Estimate | None
    second: Estimate | None


def between_models(corpus: Corpus) -> Iterable[Pair]:
    """Every two models under the conditions that are looked at, and each beside nature under its own attack."""
    pairs = list(combinations(corpus.models, 2))
    if len(corpus.models) > ALL_PAIRS_UP_TO:
        pairs = [(corpus.models[0], model) for model in corpus.models[1:]]
    for name in corpus.looked_at:
        for second, first in pairs:
            yield _pair(name, name, first, second)
    for family in corpus.families:
        nature = next((model for model in family if model.against is None), None)
        for name, model in ((f"{kind}/{model.against}", model) for kind in ATTACKED[:2] for model in family if nature):
            if name not in corpus.looked_at:
                yield _pair(f"own {name.partition('/')[0]} {nature.label}", name, model, nature)


def of_federation(corpus: Corpus) -> list[tuple[Model, Model, dict]]:
    """(federated, centralised, the paired tests of both on clean speech): |V_θ − V_ϑ| of Chang et al. 2022, §3."""
    twins = ((model, corpus.reference(model)) for model in corpus.models)
    found = [(model, other, test(_pair("", "original", model, other))) for model, other in twins if other]
    return [(model, other, result) for model, other, result in found if result]


def _pair(family: str, condition: str, first: Model, second: Model) -> Pair:
    estimates = (model.estimates.get(condition) for model in (first, second))
    return Pair(family, title(condition), first.label, second.label, *estimates)


def of_the_randomisation(corpus: Corpus) -> Iterable[Pair]:
    """Each model with and without it: what it costs, what it helps, what is left of that against who knows of it."""
    strongest = {kind: corpus.strongest(kind) for kind in ATTACKED}
    for model in corpus.models:
        clean = (model.estimates.get(name) for name in ("randomised", "original"))
        yield Pair(f"{model.label} clean", f"{model.label}, no attack", "with", "without", *clean)
        for attack in PAPER_ATTACKS:
            yield from _switched(model, attack_title(attack), dict.fromkeys(ATTACKED, attack))
        yield from _switched(model, "the strongest", strongest)


def _switched(model: Model, named: str, attacks: Mapping[str, str | None]) -> Iterable[Pair]:
    """One model under these attacks of each kind, two kinds at a time."""
    titles = {kind: attack_title(attack or "") for kind, attack in attacks.items()}
    words = {kind: WITH[kind] + (f" ({each})" if each != named else "") for kind, each in titles.items()}
    for low, high in combinations(ATTACKED, 2):
        estimates = (model.estimates.get(f"{kind}/{attacks[kind]}") for kind in (high, low))
        yield Pair(f"{model.label} {high} {low}", f"{model.label}, {named}", words[high], words[low], *estimates)


def tested(pairs: Iterable[Pair]) -> tuple[pd.DataFrame, int]:
    """A row per pair that can be tested, p-values corrected (Holm) within each family; how many pairs cannot."""
    found = [(pair, test(pair)) for pair in pairs if pair.first and pair.second]
    kept = [{"family": p.family, "shared": p.shared, "a": p.a, "b": p.b, **result} for p, result in found if result]
    data = pd.DataFrame(kept)
    for column in ("bootstrap_p", "mcnemar_p") if kept else ():
        data[f"{column}_holm"] = data.groupby("family")[column].transform(holm)
    return data, len(found) - len(kept)


def holm(p: pd.Series) -> pd.Series:
    """Corrected for one family; where a p-value is unknown it stays so."""
    known = p.dropna()
    return pd.Series(statistics.holm(known), known.index).reindex(p.index) if len(known) else p


def test(pair: Pair) -> dict | None:
    """All tests of one pair, on what the same seeds tested; None where that is nothing."""
    a, b = (estimate and estimate.observations for estimate in (pair.first, pair.second))
    if a is None or b is None:
        return None
    both = a.merge(b[["seed", "utterance", "correct"]], on=["seed", "utterance"], suffixes=("_a", "_b"))
    if both.empty:
        return None
    sides = ["correct_a", "correct_b"]
    columns = (both[name] for name in (*sides, "label", "speaker", "seed"))
    paired = statistics.paired_bootstrap(*columns, repeats=REPEATS)
    clips = both.groupby("utterance")[sides].mean()  # each once, with the mean of its seeds
    mcnemar = statistics.mcnemar(*(clips[side] for side in sides))
    seeds = [each for _, each in both.groupby("seed")]
    uars = np.array([[statistics.uar(each[side], each["label"]) for side in sides] for each in seeds])  # [seeds, 2]
    trainings, over = uars[:, 0] - uars[:, 1], uars.mean(axis=0)
    z = statistics.z_test(*sorted(over, reverse=True), len(clips), len(clips))
    return {
        "difference": paired.difference,
        "low": paired.interval.low,
        "high": paired.interval.high,
        "bootstrap_p": paired.p,
        "bootstrap_p_at_most": paired.p == paired.least,
        "mcnemar_p": mcnemar.p,
        "only_a": mcnemar.b,
        "only_b": mcnemar.c,
        "trainings": trainings.round(6).tolist(),
        "trainings_p": statistics.t_test(trainings).p if len(trainings) >= TELLING else nan,
        "z": float(np.copysign(z.z, over[0] - over[1])),
        "z_p": min(1.0, 2 * z.p),  # one-tailed in the paper; which way is not known before one has looked
        "utterances": len(clips),
    }
