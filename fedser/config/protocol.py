"""The evaluation protocol: which attacks with which settings, known to whom, over how many draws.

An attack is named as its file in `conf/attack`, or varied: `pgd_strong@eps=0.1` or `pgd@eps=0.1,steps=20`.
Nothing heavy is imported here, as the run's name depends on it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from omegaconf import OmegaConf

from fedser.config.components import Component
from fedser.config.schema import shown
from fedser.config.settings import Settings
from fedser.errors import InputError, nearest

CLEAN = "original"  # the part of a protocol without attacks
UNSEEN = "unseen/"  # before the name of a condition in metrics: of speakers whom nobody trains on
KINDS = ("original", "randomised", "adversarial", "randomised_adversarial", "adaptive")  # in the order of the tables


@dataclass(frozen=True)
class Condition:
    """One kind of test data: a set of adversarial examples (None: original data), with or without randomisation.

    A set is named by its attack, with `adaptive/` before it where the attacker knows the randomisation.
    """

    name: str
    examples: str | None
    randomised: bool

    @property
    def attack(self) -> str | None:
        """The attack's name, None for original data."""
        return self.examples and self.examples.removeprefix("adaptive/")


@dataclass(frozen=True)
class Protocol:
    """One evaluation: its attacks, and how they are measured.

    attacks, adaptive: names of attacks, oblivious of the randomisation and knowing it.
    randomised: whether the model has a randomisation at inference.
    draws: how many draws of it each sample is tested on.
    fraction: of each client's test utterances, stratified by class; 1 for all.
    gradients: whether to count the samples at which the loss has no gradient.
    utterances: whether clients report what became of each test utterance, and not only their confusion matrices.
    example: whether the first client shows one utterance and what the attacks made of it.
    groups: columns of the corpus by whose values clients count too.
    min_support: clips of a client, of a smaller group of which it says nothing.
    validation: whether the validation utterances are tested under all of it too, and not only without attacks.
    only: of all this only one part: `original`, which is all without attacks, or a set of adversarial examples.
    part: of whose utterances: the clients' "test" or "validation" ones.
    """

    attacks: Sequence[str] = ()
    adaptive: Sequence[str] = ()
    randomised: bool = True
    draws: int = 1
    fraction: float = 1.0
    gradients: bool = False
    utterances: bool = False
    example: bool = False
    groups: Sequence[str] = ()
    min_support: int = 1
    validation: bool = False
    only: str | None = None
    part: str = "test"

    @property
    def parts(self) -> list["Protocol"]:
        """The same, in parts that can be measured one by one (see `results.joined`)."""
        sets = self.sets
        # All attackers who know as much have the same gradients: they are looked at once.
        first = {name.startswith("adaptive/"): name for name in reversed(sets)}.values()
        gradients = {name: self.gradients and name in first for name in sets}
        return [replace(self, only=name, gradients=gradients.get(name, False)) for name in (CLEAN, *sets)]

    @property
    def clean(self) -> bool:
        """Whether original data are a part of it."""
        return self.only in (None, CLEAN)

    @property
    def sets(self) -> list[str]:
        """The sets of adversarial examples to make."""
        every = [*self.attacks, *(f"adaptive/{name}" for name in self.adaptive if self.randomised)]
        return [name for name in every if self.only in (None, name)]

    @property
    def conditions(self) -> list[Condition]:
        """In the order of the tables."""
        found = [Condition("original", None, False)]
        if self.randomised:
            found.append(Condition("randomised", None, True))
        found += [Condition(f"adversarial/{name}", name, False) for name in self.attacks]
        if self.randomised:
            found += [Condition(f"randomised_adversarial/{name}", name, True) for name in self.attacks]
        found += [Condition(name, name, True) for name in self.sets if name.startswith("adaptive/")]
        return [condition for condition in found if self.only in (None, condition.examples or CLEAN)]

    def plain(self) -> dict:
        """As it travels to the clients: `Protocol(**plain)`."""
        return asdict(self)


@dataclass(frozen=True)
class Protocols:
    """A run's evaluations: `final` after the last round, `curve` on the way there, `selection` where it decides which
    round's model is kept; `learnt` are the names of the attacks that a detector learns from; `attacks` of all, by
    name."""

    final: Protocol
    curve: Protocol
    selection: Protocol
    learnt: tuple[str, ...]
    attacks: dict[str, Component]

    @classmethod
    def of(cls, settings: Settings) -> "Protocols":
        """Raises InputError for a name that no attack file has, for a variation of a key that it has not, and for an
        attack on a detector where there is none."""
        names, chosen = _Names(settings), settings.evaluation
        parts = {"draws", "fraction", "gradients", "utterances", "example", "validation", "groups", "min_support"}
        shared = chosen.model_dump(include=parts)
        shared["example"] &= not settings.features.ragged  # it is a picture of a log-Mel
        names.check_detector()
        final = Protocol(**names.by_knowledge(names.final(), names.adaptive()), **shared)
        # One draw, as a curve of rounds averages by itself; a detector there is after the last round only.
        curve = [name for name in chosen.curve if not names.evades(name)]
        curve = Protocol(**names.by_knowledge(curve, []), fraction=chosen.fraction)
        threat = settings.selection.attack
        selection = Protocol([threat] if threat else [], randomised=False, only=threat, part="validation")
        protocols = (final, curve, selection)
        learnt = names.learnt()
        every = dict.fromkeys([*(name for each in protocols for name in (*each.attacks, *each.adaptive)), *learnt])
        return cls(*protocols, learnt, {name: names.attack(name) for name in every})


class _Names:
    """Attacks by name, under some settings.

    `attack` itself where the names meet, else `attacks.<name>`; with `evaluation.eps`, if set, in all that are bounded
    in L∞, and varied as the name says.
    """

    def __init__(self, settings: Settings):
        self.settings, self.chosen = settings, settings.evaluation

    def by_knowledge(self, names: Sequence[str], adaptive: Sequence[str]) -> dict:
        """`attacks` and `adaptive` of a protocol: what always knows of a randomisation has no oblivious version."""
        randomised = self.settings.defence.inference is not None
        knowing = [name for name in names if randomised and self.attack(name).get("adaptive")]
        return {
            "attacks": [name for name in names if name not in knowing],
            "adaptive": list(dict.fromkeys([*adaptive, *knowing])),
            "randomised": randomised,
        }

    def final(self) -> list[str]:
        """`evaluation.attacks`, the one that knows the detector, what `evaluation.grid` and `evaluation.sanity` add."""
        names = [*self.chosen.attacks, *self.knowing()]
        varied = [
            _vary(name, key, value)
            for name in names
            for key, values in (self.chosen.grid or {}).items()
            for value in values or []
            if self.attack(name).get(key) not in (None, value) and key not in _varied_keys(name)
        ]
        probed, more_steps, budgets = self._probes()
        return list(dict.fromkeys([*names, *varied, *probed, *more_steps, *budgets]))

    def adaptive(self) -> list[str]:
        """`evaluation.adaptive`; with the attack that `evaluation.sanity` probes also more steps and the last ε.

        Not with every ε: behind a randomisation each step takes many draws.
        """
        names = self.chosen.adaptive
        probed, more_steps, budgets = self._probes()
        return list(dict.fromkeys([*names, *([*more_steps, *budgets[-1:]] if set(probed) <= set(names) else [])]))

    def learnt(self) -> tuple[str, ...]:
        """What the detector learns from."""
        value = self.settings.detector.get("attack")
        names = value if isinstance(value, list | tuple) else [value]
        return tuple(name for name in names if isinstance(name, str) and name != "none")

    def knowing(self) -> list[str]:
        """The attack that is told of the detector, if there is one and it is to be attacked."""
        name = self.settings.detector.get("knowing") if self.settings.detector else None
        return [name] if isinstance(name, str) else []

    def evades(self, name: str) -> bool:
        """Whether an attack needs a detector that it knows."""
        return bool(self.attack(name).get("evades"))

    def check_detector(self) -> None:
        """Raises InputError for a detector without attacks to learn from, and for an attack on one where none is."""
        detector, learnt, chosen = self.settings.detector, self.learnt(), self.chosen
        if detector and not learnt:
            raise InputError(
                f"detector.attack={shown(detector.get('attack'))}: detector={detector.name} learns from adversarial "
                "examples: name an attack or more, e.g. detector.attack=[pgd]."
            )
        learnt = [name for name in learnt if self.attack(name, "the detector")]
        for name in filter(self.evades, (*learnt, *chosen.adaptive, *filter(None, [self.settings.selection.attack]))):
            raise InputError(
                f"{name} knows a detector, which watches what is not randomised, and after the last round only: no "
                "attack for detector.attack, evaluation.adaptive or selection.attack."
            )
        for name in () if detector else filter(self.evades, (self.settings.attack.name, *chosen.attacks)):
            raise InputError(
                f"the attack {name} knows a detector, and there is none: set detector=lda, or another attack."
            )
        for name in self.knowing():
            if not self.attack(name, "the detector").get("evades"):
                raise InputError(f"detector.knowing={name}: that attack knows of no detector; e.g. evading, or null.")

    def _probes(self) -> tuple[list[str], list[str], list[str]]:
        """For the sanity flags: an attack, itself with more steps, itself with other budgets."""
        sanity = self.chosen.sanity
        if not sanity:
            return [], [], []
        name, attack = sanity.attack, self.attack(sanity.attack)
        missing = [key for key in ("steps", "eps") if attack.get(key) is None]
        if missing:
            raise InputError(
                f"evaluation.sanity.attack={name} has no {missing[0]}: choose one that has, e.g. pgd_strong."
            )
        budgets = [_vary(name, "eps", f"{factor * attack.get('eps'):g}") for factor in sanity.eps_factors]
        return [name], [_vary(name, "steps", sanity.steps_factor * attack.get("steps"))], budgets

    def attack(self, name: str, whose: str = "the evaluation") -> Component:
        """The attack that `whose` settings call so, with its own settings and what the name varies."""
        plain, _, changes = name.partition("@")
        known = self.settings.attacks | {self.settings.attack.name: self.settings.attack}
        if plain not in known:
            near = nearest(plain, known, "; did you mean '{}'?") or "."
            raise InputError(f"{whose} names '{name}', which is no attack{near} Known: {', '.join(known)}.")
        attack = known[plain]
        if self.chosen.eps is not None and attack.get("norm") == "Linf":
            attack = _with_eps(attack, self.chosen.eps)
        for change in filter(None, changes.split(",")):
            attack = _varied(attack, name, change)
        return attack


def _varied_keys(name: str) -> list[str]:
    return [change.partition("=")[0] for change in name.partition("@")[2].split(",")]


def _vary(name: str, key: str, value) -> str:
    """The attack's name with this setting too."""
    return f"{name}{',' if '@' in name else '@'}{key}={value}"


def _varied(attack: Component, name: str, change: str) -> Component:
    key, _, value = change.partition("=")
    if attack.get(key) is None or not value:
        known = ", ".join(key for key, value in attack.options.items() if value is not None)
        raise InputError(f"the attack '{name}' varies '{change}', but {attack.name} has only the keys {known}")
    value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))["value"]
    return _with_eps(attack, value) if key == "eps" else attack.with_options(**{key: value})


def _with_eps(attack: Component, eps: float) -> Component:
    """The attack with this budget; what it is composed of has the same one."""
    before = attack.get("eps")

    def change(node):
        if isinstance(node, dict):
            return {key: eps if key == "eps" and value == before else change(value) for key, value in node.items()}
        return [change(item) for item in node] if isinstance(node, list) else node

    return attack.with_options(**change(attack.options))
