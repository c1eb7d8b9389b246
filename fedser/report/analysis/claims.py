"""The claims of Chang et al. 2022, §6.3, each held against what was measured here."""

import json
from collections.abc import Iterable, Sequence
from importlib.resources import files
from math import nan
from typing import NamedTuple

import pandas as pd

from fedser.report.analysis.comparisons import Pair, holm, test
from fedser.report.analysis.conditions import PAPER_ATTACKS, attack_title
from fedser.report.analysis.models import Corpus, Model

PAPER = json.loads((files("fedser.report") / "chang2022.json").read_text(encoding="utf-8"))
CLAIMS = ("clean", "free", "training", "deepfool", "randomised_nature", "randomised_deepfool", "randomised_trained")
SMALL = 0.05  # of UAR: a difference whose whole interval is smaller is none to speak of


class Finding(NamedTuple):
    """One comparison that a claim rests on: `verdict` is reproduced, not reproduced or undecided."""

    verdict: str
    words: str  # what was compared
    difference: float
    low: float
    high: float
    paper: float  # the paper's difference
    trainings_p: float = nan  # of the differences seed by seed


class Claim(NamedTuple):
    """A claim by its key, and what it rests on here."""

    key: str
    findings: Sequence[Finding]

    @property
    def verdict(self) -> str:
        """That of its findings; where they disagree, of the worse ones, or `reproduced in part`."""
        verdicts = {finding.verdict for finding in self.findings}
        if len(verdicts) == 1:
            return verdicts.pop()
        return "reproduced in part" if "reproduced" in verdicts else "not reproduced"


class Asked(NamedTuple):
    """A difference that a claim is about, of a model under a condition beside another one: `more` is what the paper
    says, that it is positive, or else about zero."""

    key: str
    more: bool
    words: str
    sides: Sequence[tuple[Model | None, str]]

    @property
    def result(self) -> dict | None:
        """The paired tests; None where a side was not measured."""
        estimates = (model and model.estimates.get(condition) for model, condition in self.sides)
        return test(Pair("", self.words, "", "", *estimates))

    @property
    def paper(self) -> float:
        """The paper's difference."""
        model, condition = self.sides[0]
        attack = model.against or condition.partition("/")[2]
        after, before = (_paper(model, condition, attack) for model, condition in self.sides)
        return (after - before) / 100


def _paper(model: Model, condition: str, attack: str) -> float:
    found = PAPER["adversarial" if model.against else "nature"][condition.partition("/")[0]]
    return found[attack] if isinstance(found, dict) else found


def claims(corpus: Corpus) -> list[Claim]:
    """Those of which something was measured, on the first family of models; p corrected (Holm) claim by claim."""
    tested: dict[str, list[tuple[Asked, dict]]] = {key: [] for key in CLAIMS}
    for asked in _asked(corpus):
        if result := asked.result:
            tested[asked.key].append((asked, result))
    return [Claim(key, list(_findings(each, corpus.chance or 0))) for key, each in tested.items() if each]


def _findings(tested: Sequence[tuple[Asked, dict]], chance: float) -> Iterable[Finding]:
    corrected = holm(pd.Series([result["bootstrap_p"] for _, result in tested], dtype=float))
    for (asked, result), p in zip(tested, corrected, strict=True):
        interval = (result["difference"], result["low"], result["high"])
        learnt = all(_learnt(model, chance) for model, _ in asked.sides)
        verdict = _verdict(asked.more, p, *interval) if learnt else "undecided"
        yield Finding(verdict, asked.words, *interval, asked.paper, result["trainings_p"])


def _learnt(model: Model, chance: float) -> bool:
    """Whether it beats chance on clean speech: what guesses neither gains nor loses by any defence."""
    clean = model.estimates.get("original")
    return clean is not None and clean.interval.low > chance


def _asked(corpus: Corpus) -> Iterable[Asked]:
    family = corpus.families[0] if corpus.models else []
    nature = next((model for model in family if model.against is None), None)
    trained = {model.against: model for model in reversed(family)}
    models = [trained[attack] for attack in PAPER_ATTACKS if attack in trained]
    for model in models:
        yield Asked("clean", True, model.label, [(model, "original"), (nature, "original")])
    for model in filter(None, [nature, *models]):
        yield Asked("free", False, model.label, [(model, "randomised"), (model, "original")])
    for attack in PAPER_ATTACKS:
        name, title, minimal = f"adversarial/{attack}", attack_title(attack), attack == "deepfool"
        model = trained.get(attack)
        yield Asked("deepfool" if minimal else "training", not minimal, title, [(model, name), (nature, name)])
        for each, key in ((nature, "randomised_nature"), (model, "randomised_trained")):
            if each:
                words, sides = f"{each.label} under {title}", [(each, f"randomised_{name}"), (each, name)]
                yield Asked("randomised_deepfool" if minimal else key, minimal or each is nature, words, sides)


def _verdict(more: bool, p: float, difference: float, low: float, high: float) -> str:
    if more:
        return ("reproduced" if difference > 0 else "not reproduced") if p < 0.05 else "undecided"
    if low > -SMALL and high < SMALL:
        return "reproduced"
    return "not reproduced" if low > 0 or high < 0 else "undecided"
