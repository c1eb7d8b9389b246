"""Sanity flags: signs that an evaluation flatters a model (after Carlini et al. 2019, "On Evaluating Adversarial
Robustness", §3 and §5; Athalye et al. 2018, §3.1).

A flag is raised when the figures contradict what a sound evaluation must show. It does not prove the model weak or the
attack broken; it says where to look. UARs that differ by less than a point contradict nothing. A contradiction is
`significant` where a paired test over speakers supports it, else `minor`: one or two clips could be all there is to it.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fedser.config.protocol import KINDS
from fedser.evaluation import metrics, statistics

POINT = 0.01  # of UAR
HUGE = 20  # times an attack's own ε: at 1 σ a clip may be changed into another
ROUNDING = 1e-4  # σ: of cells mapped into an attack's box and back (`Adversary` itself checks to the bit of it)
VANISHED = 0.01  # of utterances without a gradient
FEW = 2  # clips that are no evidence
CONTROL = "noise"
DRAWS = 10  # of a known randomisation, where an attack's file says nothing (`Adversary`)
ORIGINAL, RANDOMISED, WITHOUT, OBLIVIOUS, ADAPTIVE = KINDS
INFORMED = (WITHOUT, ADAPTIVE)  # where the attacker knows all that is there
UNATTACKED = {WITHOUT: ORIGINAL, OBLIVIOUS: RANDOMISED, ADAPTIVE: RANDOMISED}


@dataclass(frozen=True)
class Flag:
    """One check: raised, clear, or not checked for want of the conditions it compares.

    `severity` of a raised one: `significant` or `minor`; empty for others.
    """

    flag: str
    title: str
    status: str
    detail: str
    severity: str = ""


class Compared(NamedTuple):
    """One comparison: whether it contradicts, in words, and whether a test supports the contradiction."""

    wrong: bool
    words: str
    supported: bool = True


CHECKS: list[Callable[["Figures"], Flag]] = []


def check(title: str, wanting: str) -> Callable:
    """Makes a check of a function that yields comparisons: its flag is raised by any of them, and without one it says
    what is wanting."""

    def register(compared: Callable[["Figures"], Iterator[Compared]]) -> Callable:
        CHECKS.append(lambda figures: _judged(compared.__name__, title, list(compared(figures)), wanting))
        return compared

    return register


def _judged(flag: str, title: str, compared: list[Compared], wanting: str) -> Flag:
    if not compared:
        return Flag(flag, title, "not checked", wanting)
    wrong = sorted((each for each in compared if each.wrong), key=lambda each: not each.supported)
    sentences = [each.words for each in wrong or compared]
    more = f"; and {len(sentences) - 4} more" if len(sentences) > 4 else ""
    detail = "; ".join(sentences[:4]) + more + "."
    if not wrong:
        return Flag(flag, title, "clear", detail)
    return Flag(flag, title, "raised", detail, "significant" if wrong[0].supported else "minor")


def flags(record: dict) -> list[dict]:
    """All flags of an `evaluation.json`: raised ones first, of these the significant ones."""
    found = [judge(Figures(record)) for judge in CHECKS]
    order = ("raised", "clear", "not checked")
    return [vars(f) for f in sorted(found, key=lambda f: (order.index(f.status), f.severity != "significant"))]


class Figures:
    """UARs under attack, as the checks ask for them."""

    def __init__(self, record: dict):
        self.conditions, self.examples = record["conditions"], record["examples"]
        self.attacks = {name: attack["settings"] for name, attack in record["attacks"].items()}
        self.threats = {name: str(attack.get("threat", "")) for name, attack in record["attacks"].items()}
        self.chance = 1 / len(record["classes"])

    def uar(self, attack: str, kind: str = WITHOUT) -> float | None:
        condition = self.conditions.get(f"{kind}/{attack}")
        return condition and condition["uar"]

    def clips(self, one: str, other: str) -> str:
        """By how many test clips, net, two conditions differ: ` (3 of 108 clips)`."""
        counted = [self.conditions[name] for name in (one, other) if "matrix" in self.conditions[name]]
        if len(counted) < 2:
            return ""
        right, clips = zip(*(_right_of(condition) for condition in counted), strict=True)
        return f" ({abs(right[0] - right[1]):.3g} of {clips[0]} clips)"

    def compare(self, one: str, other: str, words: str, by: float = POINT) -> Compared:
        """The UAR of condition `one` must not exceed that of `other` by more than `by`."""
        wrong = self.conditions[one]["uar"] > self.conditions[other]["uar"] + by
        return Compared(wrong, words, wrong and self._supported(one, other, min(by, 0)))

    def _supported(self, one: str, other: str, by: float) -> bool:
        """Whether the interval of the difference, over clients as over speakers, lies above `by`."""
        conditions = [self.conditions[name] for name in (one, other)]
        if any(len(condition.get("by_client") or {}) < 2 for condition in conditions):
            return False
        (first, *places), (second, *others) = map(_cells, conditions)
        if not all(map(np.array_equal, places, others)):  # of other clips: nothing to pair
            return False
        return statistics.paired_bootstrap(first, second, *places).interval.low > by

    def floor(self, name: str) -> float:
        """What an attack of any size leaves: chance, or nothing where true labels tell it what to lead away from."""
        return 0.0 if self.attacks[name].get("labels") in ("true", True) else self.chance

    def beats(self, level: float, name: str) -> bool:
        """Whether a condition's UAR lies above the level with its whole interval."""
        matrices = [matrix for matrix in self.conditions[name].get("by_client", {}).values() if np.any(matrix)]
        return len(matrices) > 1 and statistics.clustered_bootstrap_of_matrices(matrices).low > level

    @property
    def tested(self) -> float:
        """How many clips were tested; infinite where that is not known."""
        original = self.conditions.get(ORIGINAL, {})
        return _right_of(original)[1] if "matrix" in original else np.inf

    def bounded(self, kind: str = WITHOUT) -> list[str]:
        """Attacks bounded in L∞ and tested so, as their files have them, not varied; without the control."""
        return [
            name
            for name, attack in self.attacks.items()
            if attack.get("norm") == "Linf" and "@" not in name and name != CONTROL and self.uar(name, kind) is not None
        ]

    def multi_step(self, name: str) -> bool:
        """Whether it goes there in many steps, or is composed of attacks that do; black boxes grope."""
        return not self.black_box(name) and (self.composed(name) or (self.attacks[name].get("steps") or 1) > 1)

    def black_box(self, name: str) -> bool:
        """Whether it sees less than the model's gradients, by its threat model."""
        return any(f": {knowledge}," in self.threats[name] for knowledge in ("black-box", "transfer"))

    def composed(self, name: str) -> bool:
        """Whether it is an ensemble of others."""
        return bool(self.attacks[name].get("members"))

    def varied(self, key: str) -> Iterator[tuple[str, str, float]]:
        """(attack, variation, value) of every variation of this one key, and of the attack itself."""
        for name in self.attacks:
            plain, _, change = name.partition("@")
            if change.startswith(f"{key}=") and "," not in change and plain in self.attacks:
                yield plain, name, float(change.partition("=")[2])

    def rivals(self, name: str, kind: str) -> list[str]:
        """The other attacks of its budget that were tested so."""
        return [other for other in self.bounded(kind) if other != name and self.same_budget(other, name)]

    def beside_the_best(self, chosen: Callable[[str], bool]) -> Iterator[tuple[str, str, str]]:
        """(condition, rival's condition, words): every attack that is `chosen`, beside the strongest of its rivals that
        are not."""
        for kind in INFORMED:
            for name in filter(chosen, self.bounded(kind)):
                if others := [other for other in self.rivals(name, kind) if not chosen(other)]:
                    best = min(others, key=lambda other: self.uar(other, kind))
                    yield f"{kind}/{name}", f"{kind}/{best}", self.against(name, kind, best, f"{kind}/{best}")

    def same_budget(self, one: str, other: str) -> bool:
        return self.attacks[one].get("eps") == self.attacks[other].get("eps")

    def by_budget(self) -> Iterator[tuple[str, str, list[tuple[float, str]]]]:
        """(attack, kind, points) of each tested at several budgets: (ε, condition), from the unattacked at 0 on.

        Away from the predicted label, an attack may lead to the true one, and raise UAR: those start at their smallest
        ε.
        """
        for kind in INFORMED:
            found: dict[str, dict[float, str]] = {}
            for plain, varied, eps in self.varied("eps"):
                points = found.setdefault(plain, {})
                for name, budget in ((plain, self.attacks[plain]["eps"]), (varied, eps)):
                    if self.uar(name, kind) is not None:
                        points[budget] = f"{kind}/{name}"
            for name, points in found.items():
                if len(points) > 1 and name != CONTROL:
                    away = self.attacks[name].get("labels") == "predicted"
                    start = {0.0: UNATTACKED[kind]} if not away and UNATTACKED[kind] in self.conditions else {}
                    yield name, kind, sorted((start | points).items())

    def leaves(self, name: str, kind: str) -> str:
        """`adaptive pgd leaves 32.0%`"""
        return f"{_named(name, kind)} leaves {self.uar(name, kind):.1%}"

    def against(self, name: str, kind: str, rival: str, condition: str) -> str:
        """`pgd leaves 32.0%, fgsm 30.0% (2 of 108 clips)`; the rival's UAR is that of `condition`."""
        clips = self.clips(f"{kind}/{name}", condition)
        return f"{self.leaves(name, kind)}, {rival} {self.conditions[condition]['uar']:.1%}{clips}"

    def gain(self, before: str, after: str, words: str) -> Compared:
        """What condition `after` gains beside `before`, which should be as strong."""
        gain = self.conditions[before]["uar"] - self.conditions[after]["uar"]
        return self.compare(before, after, f"{words} {100 * gain:.1f} points{self.clips(before, after)}")


@check(
    "a multi-step attack is weaker than a single step", "needs fgsm and an attack of several steps, of the same budget"
)
def multi_step_weaker(figures: Figures) -> Iterator[Compared]:
    for kind in INFORMED:
        fgsm = f"{kind}/fgsm"
        for name in filter(figures.multi_step, figures.bounded(kind)):
            if "fgsm" in figures.rivals(name, kind):
                yield figures.compare(f"{kind}/{name}", fgsm, figures.against(name, kind, "fgsm", fgsm))


@check("an ensemble of attacks is weaker than a single one", "needs an ensemble, e.g. autoattack, and another attack")
def ensemble_weaker(figures: Figures) -> Iterator[Compared]:
    for ensemble, best, words in figures.beside_the_best(figures.composed):
        yield figures.compare(ensemble, best, words)


@check("an attack without gradients beats those with them", "needs square or transfer, and a white-box attack")
def black_box_stronger(figures: Figures) -> Iterator[Compared]:
    for black_box, best, words in figures.beside_the_best(figures.black_box):
        yield figures.compare(best, black_box, words)


@check("gradients vanish", "needs evaluation.gradients=true")
def gradients_vanish(figures: Figures) -> Iterator[Compared]:
    shares = {name: examples["zero_gradient"] for name, examples in figures.examples.items()}
    if known := [(share, name) for name, share in shares.items() if share is not None]:
        share, name = max(known)
        words = f"{share:.1%} of the utterances have no gradient for {name}"
        yield Compared(share > VANISHED, words, share * figures.tested > FEW)


@check("twice the steps gain more than a point", "needs an attack with more steps (evaluation.sanity)")
def not_converged(figures: Figures) -> Iterator[Compared]:
    for plain, varied, steps in figures.varied("steps"):
        for kind in INFORMED:
            if None not in (figures.uar(plain, kind), figures.uar(varied, kind)):
                more = f"{steps:g} steps instead of {figures.attacks[plain]['steps']} gain"
                yield figures.gain(f"{kind}/{plain}", f"{kind}/{varied}", f"{_named(plain, kind)}: {more}")


@check(
    "more draws of the randomisation gain more than a point",
    "needs adaptive attacks that differ in their draws only (eot_pgd and pgd_strong)",
)
def too_few_draws(figures: Figures) -> Iterator[Compared]:
    for few, many in itertools.permutations(figures.bounded(ADAPTIVE), 2):
        one, other = figures.attacks[few], figures.attacks[many]
        draws, more = one.get("eot", DRAWS), other.get("eot", DRAWS)
        if _but_draws(one) == _but_draws(other) and draws < more:
            words = f"{many} after {few}: {more} draws a step instead of {draws} gain"
            yield figures.gain(f"{ADAPTIVE}/{few}", f"{ADAPTIVE}/{many}", words)


@check("UAR rises with ε", "needs several ε (evaluation.sanity or .grid)")
def not_monotone(figures: Figures) -> Iterator[Compared]:
    for name, kind, points in figures.by_budget():
        path = " → ".join(f"{100 * figures.conditions[condition]['uar']:.1f}" for _, condition in points)
        words = f"{_named(name, kind)} at ε {', '.join(f'{eps:g}' for eps, _ in points)}: {path} %"
        rises = [figures.compare(b, a, words) for (_, a), (_, b) in itertools.pairwise(points)]
        yield max(rises, key=lambda each: (each.wrong, each.supported))


@check("a huge ε does not take everything", "needs a large ε")
def large_eps_survived(figures: Figures) -> Iterator[Compared]:
    for name, kind, points in figures.by_budget():
        eps, condition = points[-1]
        if figures.multi_step(name) and eps >= HUGE * figures.attacks[name]["eps"]:
            uar = figures.conditions[condition]["uar"]
            level = figures.floor(name) or POINT
            floor = f"chance is {level:.1%}" if figures.floor(name) else "true labels allow for none"
            words = f"{_named(name, kind)} at ε {eps:g} leaves {uar:.1%}, {floor}"
            yield Compared(uar > level, words, figures.beats(level, condition))


@check("knowing the defence makes the attack weaker", "needs adaptive attacks on a randomised model")
def adaptive_weaker(figures: Figures) -> Iterator[Compared]:
    for name in figures.attacks:
        oblivious, adaptive = figures.uar(name, OBLIVIOUS), figures.uar(name, ADAPTIVE)
        if None not in (oblivious, adaptive) and name.partition("@")[0] != CONTROL:
            words = f"{name}: {adaptive:.1%} knowing the randomisation, {oblivious:.1%} oblivious of it"
            yield figures.compare(f"{ADAPTIVE}/{name}", f"{OBLIVIOUS}/{name}", words)


@check("random noise does as well as an attack", "needs the attack 'noise'")
def noise_as_strong(figures: Figures) -> Iterator[Compared]:
    for kind, beside in ((WITHOUT, WITHOUT), (ADAPTIVE, OBLIVIOUS)):
        if (control := figures.uar(CONTROL, beside)) is None:
            continue
        for name in figures.bounded(kind):
            if figures.same_budget(name, CONTROL):
                words = f"{CONTROL} leaves {control:.1%}, {figures.leaves(name, kind)}"
                yield figures.compare(f"{kind}/{name}", f"{beside}/{CONTROL}", words, -POINT)


@check("an attack raises UAR", "needs an attack beside the unattacked")
def uar_raised(figures: Figures) -> Iterator[Compared]:
    for kind, clean in UNATTACKED.items():
        for name in figures.attacks:
            if name.partition("@")[0] != CONTROL and {clean, f"{kind}/{name}"} <= figures.conditions.keys():
                yield figures.compare(f"{kind}/{name}", clean, figures.against(name, kind, "no attack", clean))


@check("an attack left its budget", "needs an attack bounded in L∞")
def budget_breached(figures: Figures) -> Iterator[Compared]:
    """A breach of the budget has already ended the evaluation (`BudgetError`); this shows how far attacks went."""
    for name, examples in figures.examples.items():
        attack = figures.attacks[name.removeprefix("adaptive/")]
        if attack.get("norm") == "Linf" and (eps := attack.get("eps")) is not None:
            words = f"{name} moved cells by at most {examples['linf']:.4g} of {eps:g}"
            yield Compared(examples["linf"] > 1.001 * eps + ROUNDING, words)


def _cells(condition: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per clip how often it was right, as a mean over its client and class, its class and its client: a test that
    resamples clients needs no more."""
    matrices = np.array([np.asarray(matrix, float) for matrix in condition["by_client"].values()])
    recalls = np.nan_to_num([metrics.recalls(matrix) for matrix in matrices])
    counts = (matrices.sum(axis=2) // condition.get("draws", 1)).astype(int)
    client, label = (place.ravel() for place in np.indices(counts.shape))
    return tuple(np.repeat(part, counts.ravel()) for part in (recalls.ravel(), label, client))


def _right_of(condition: dict) -> tuple[float, int]:
    """How many test clips are right, as a mean over draws, and how many there are."""
    matrix, draws = condition["matrix"], condition.get("draws", 1)
    return np.trace(matrix) / draws, round(np.sum(matrix) / draws)


def _named(name: str, kind: str) -> str:
    return {WITHOUT: "", OBLIVIOUS: "oblivious ", ADAPTIVE: "adaptive "}[kind] + name


def _but_draws(attack: dict) -> dict:
    """What two attacks share that differ in the draws of a known randomisation only."""
    return {key: value for key, value in attack.items() if key not in ("name", "eot", "adaptive")}
