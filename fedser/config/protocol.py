"""What an evaluation measures: which attacks with which settings, by whom known, over how many draws.

An attack is named as its file in `conf/attack`, or varied: `pgd_strong@eps=0.1` or `pgd@eps=0.1,steps=20`.
Nothing heavy is imported here, as the run's name depends on it.
"""

import copy
import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from fedser.errors import InputError

KINDS = ("original", "randomised", "adversarial", "randomised_adversarial", "adaptive")  # in the order of the tables


@dataclass(frozen=True)
class Condition:
    """What a model is tested on: a set of adversarial examples (None: original data), the defence worn or not.

    A set is named by its attack, with `adaptive/` before it where the attacker knows the defence.
    """

    name: str
    examples: str | None
    worn: bool

    @property
    def attack(self) -> str | None:
        return self.examples and self.examples.removeprefix("adaptive/")


@dataclass(frozen=True)
class Agenda:
    """What one evaluation measures.

    attacks, adaptive: names of attacks, oblivious of the randomisation and knowing it.
    randomised: whether there is a randomisation to wear.
    draws: how many draws of it each sample is tested on.
    fraction: of the test utterances, stratified by class; 1 for all.
    gradients: whether to count the samples at which the loss has no gradient.
    utterances: whether clients tell what became of each test utterance, and not only their confusion matrices.
    example: whether the first client shows one utterance and what the attacks made of it.
    """

    attacks: Sequence[str] = ()
    adaptive: Sequence[str] = ()
    randomised: bool = True
    draws: int = 1
    fraction: float = 1.0
    gradients: bool = False
    utterances: bool = False
    example: bool = False

    @property
    def sets(self) -> list[str]:
        """The sets of adversarial examples to make."""
        return [*self.attacks, *(f"adaptive/{name}" for name in self.adaptive if self.randomised)]

    @property
    def conditions(self) -> list[Condition]:
        """In the order of the tables."""
        found = [Condition("original", None, False)]
        if self.randomised:
            found.append(Condition("randomised", None, True))
        found += [Condition(f"adversarial/{name}", name, False) for name in self.attacks]
        if self.randomised:
            found += [Condition(f"randomised_adversarial/{name}", name, True) for name in self.attacks]
        return found + [Condition(name, name, True) for name in self.sets if name.startswith("adaptive/")]

    def plain(self) -> dict:
        """As it travels to the clients: `Agenda(**plain)`."""
        return asdict(self) | {"attacks": list(self.attacks), "adaptive": list(self.adaptive)}


def final(settings: dict) -> Agenda:
    """What is measured after the last round, under `settings` from `config.settle`."""
    chosen = settings["evaluation"]
    return Agenda(
        **_by_knowledge(_names(settings), _adaptive(settings), settings),
        draws=chosen["draws"],
        fraction=chosen["fraction"],
        gradients=chosen["gradients"],
        utterances=chosen["utterances"],
        example=chosen["example"],
    )


def curve(settings: dict) -> Agenda:
    """What is measured every few rounds on the way there: one draw, as a curve of rounds averages by itself."""
    chosen = settings["evaluation"]
    return Agenda(**_by_knowledge(_known(chosen["curve"]), [], settings), fraction=chosen["fraction"])


def attacks(settings: dict) -> dict[str, dict]:
    """The settings of every attack on the agendas, by name.

    `attack` itself where the names meet, else `attacks.<name>`; with `evaluation.eps`, if set, in all that are
    bounded in L∞, and varied as the name says. Raises InputError for a name that no attack file has.
    """
    agenda = final(settings)
    names = dict.fromkeys([*agenda.attacks, *agenda.adaptive, *curve(settings).attacks])
    return {name: _attack(name, settings) for name in names}


def _by_knowledge(names: list[str], adaptive: list[str], settings: dict) -> dict:
    """`attacks` and `adaptive` of an agenda: what always knows of a worn randomisation has no oblivious version."""
    randomised = settings["defence"]["inference"] is not None
    knowing = [name for name in names if randomised and _attack(name, settings).get("adaptive")]
    return {
        "attacks": [name for name in names if name not in knowing],
        "adaptive": list(dict.fromkeys([*adaptive, *knowing])),
        "randomised": randomised,
    }


def _names(settings: dict) -> list[str]:
    """`evaluation.attacks` and what `evaluation.grid` and `evaluation.sanity` add to them."""
    chosen = settings["evaluation"]
    names = _known(chosen["attacks"])
    varied = [
        _vary(name, key, value)
        for name in names
        for key, values in (chosen["grid"] or {}).items()
        for value in values or []
        if _attack(name, settings).get(key) not in (None, value) and key not in _varied_keys(name)
    ]
    probed, more_steps, budgets = _probes(settings)
    return list(dict.fromkeys([*names, *varied, *probed, *more_steps, *budgets]))


def _adaptive(settings: dict) -> list[str]:
    """`evaluation.adaptive`; with the attack that `evaluation.sanity` probes also that with more steps and the last ε.

    Not with every ε: behind a randomisation each step takes many draws.
    """
    names = _known(settings["evaluation"]["adaptive"])
    probed, more_steps, budgets = _probes(settings)
    return list(dict.fromkeys([*names, *([*more_steps, *budgets[-1:]] if set(probed) <= set(names) else [])]))


def _probes(settings: dict) -> tuple[list[str], list[str], list[str]]:
    """What the sanity flags need: an attack, itself with more steps, itself with other budgets."""
    sanity = settings["evaluation"]["sanity"]
    if not sanity:
        return [], [], []
    name = sanity["attack"]
    attack = _attack(name, settings)
    missing = [key for key in ("steps", "eps") if attack.get(key) is None]
    if missing:
        raise InputError(f"evaluation.sanity.attack={name} has no {missing[0]}: choose one that has, e.g. pgd_strong.")
    budgets = [_vary(name, "eps", f"{factor * attack['eps']:g}") for factor in sanity["eps_factors"]]
    return [name], [_vary(name, "steps", sanity["steps_factor"] * attack["steps"])], budgets


def _varied_keys(name: str) -> list[str]:
    return [change.partition("=")[0] for change in name.partition("@")[2].split(",")]


def _vary(name: str, key: str, value) -> str:
    """The attack's name with this setting too."""
    return f"{name}{',' if '@' in name else '@'}{key}={value}"


def _known(names) -> list[str]:
    names = [names] if isinstance(names, str) else names
    return [str(name) for name in names or [] if name not in (None, "none")]


def _attack(name: str, settings: dict) -> dict:
    plain, _, changes = name.partition("@")
    if plain == settings["attack"]["name"]:
        attack = settings["attack"]
    elif plain in settings["attacks"]:
        attack = settings["attacks"][plain]
    else:
        near = difflib.get_close_matches(plain, settings["attacks"], n=1)
        hint = f"; did you mean '{near[0]}'?" if near else "."
        raise InputError(
            f"the evaluation names '{name}', which is no attack{hint} Known: {', '.join(settings['attacks'])}."
        )
    eps = settings["evaluation"]["eps"]
    if eps is not None and attack.get("norm") == "Linf":
        attack = _with_eps(attack, eps)
    for change in filter(None, changes.split(",")):
        attack = _varied(attack, name, change)
    return attack


def _varied(attack: dict, name: str, change: str) -> dict:
    from omegaconf import OmegaConf

    key, _, value = change.partition("=")
    if attack.get(key) is None or not value:
        known = ", ".join(key for key, value in attack.items() if value is not None and not key.startswith("_"))
        raise InputError(f"the attack '{name}' varies '{change}', but {attack['name']} has only the keys {known}")
    value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))["value"]
    return _with_eps(attack, value) if key == "eps" else attack | {key: value}


def _with_eps(attack: dict, eps: float) -> dict:
    """The attack with this budget; what it is composed of has the same one."""
    before = attack["eps"]

    def change(node):
        if isinstance(node, dict):
            return {key: eps if key == "eps" and value == before else change(value) for key, value in node.items()}
        return [change(item) for item in node] if isinstance(node, list) else node

    return change(copy.deepcopy(attack))
