"""What a model was tested on: `original`, `randomised`, or examples of an attack under one of three kinds."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from fedser.config.protocol import KINDS

CLEAN, ATTACKED = KINDS[:2], KINDS[2:]  # in the order of the paper's Table 3, then the attacker whom it does not have

TITLES = {
    "fgsm": "FGSM",
    "pgd": "PGD",
    "deepfool": "DeepFool",
    "pgd_strong": "PGD-strong",
    "eot_pgd": "EOT-PGD",
    "eot_margin": "EOT-margin",
    "mifgsm": "MI-FGSM",
    "apgd": "APGD-CE",
    "apgd_dlr": "APGD-DLR",
    "autoattack": "AutoAttack",
    "square": "Square",
    "cw": "C&W",
    "noise": "Noise",
    "transfer": "Transfer",
    "evading": "Evading",
    "ensemble": "Ensemble",
}
"""How attacks are written, in the order of tables; any other goes by its own name, after these."""
PAPER_ATTACKS = ("fgsm", "pgd", "deepfool")


class Condition(NamedTuple):
    """`adaptive/pgd_strong@eps=0.1` → kind `adaptive`, attack `pgd_strong`, varied `eps=0.1`."""

    kind: str
    attack: str = ""
    varied: str = ""

    @property
    def name(self) -> str:
        return self.kind + (f"/{self.variant}" if self.attack else "")

    @property
    def variant(self) -> str:
        """The attack with its varied settings, as `attacks` of evaluation.json names it."""
        return self.attack + (f"@{self.varied}" if self.varied else "")

    @property
    def examples(self) -> str:
        """The set of adversarial examples that it is tested on, as `examples` of evaluation.json names it."""
        return self.name if self.kind == "adaptive" else self.variant

    @property
    def randomised(self) -> bool:
        """Whether the randomisation is switched on."""
        return self.kind not in ("original", "adversarial")

    @property
    def settings(self) -> dict[str, str]:
        """What was varied."""
        return dict(re.findall(r"([^@,=]+)=([^@,]*)", self.varied))


def parse(name: str) -> Condition:
    """Any string is a condition; one without a slash has no attack."""
    kind, _, attack = name.partition("/")
    attack, _, varied = attack.partition("@")
    return Condition(kind, attack, varied)


def in_order(names: Iterable[str]) -> list[str]:
    """Distinct conditions as people read them: without attack first, then attack by attack, the paper's first."""
    distinct = list(dict.fromkeys(names))
    attacks = attacks_in_order(parse(name).attack for name in distinct)

    def rank(name: str) -> tuple:
        kind, attack, varied = parse(name)
        among = KINDS.index(kind) if kind in KINDS else len(KINDS)
        return (attacks.index(attack) if attack else -1, _numbers(varied), among)

    return sorted(distinct, key=rank)


def attacks_in_order(names: Iterable[str]) -> list[str]:
    """Distinct attacks: those of `TITLES` in its order, others as they first appear."""
    return sorted(filter(None, dict.fromkeys(names)), key=place)


def place(attack: str) -> int:
    """Where an attack comes in the order of tables."""
    return list(TITLES).index(attack) if attack in TITLES else len(TITLES)


def _numbers(varied: str) -> list:
    """A key under which `eps=0.1` comes before `eps=0.2`, and what is not varied before both."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e-?\d+)?)", varied) if varied else []
    return [(0.0, part) if index % 2 == 0 else (float(part), "") for index, part in enumerate(parts)]


def attack_title(variant: str) -> str:
    """`pgd_strong@eps=0.1` → `PGD-strong (ε 0.1)`."""
    name, _, varied = variant.partition("@")
    shown = re.sub(r"\beps=", "ε ", varied).replace("=", " ").replace(",", ", ").replace("@", ", ")
    return TITLES.get(name, name) + (f" ({shown})" if shown else "")


def title(name: str) -> str:
    """`randomised_adversarial/pgd` → `randomised adversarial · PGD`."""
    condition = parse(name)
    kind = condition.kind.replace("_", " ")
    return f"{kind} · {attack_title(condition.variant)}" if condition.attack else kind


def of_set(examples: str) -> Condition:
    """A set of examples, as `examples` of evaluation.json names it: the condition under which they were made."""
    return parse(examples if examples.startswith("adaptive/") else f"adversarial/{examples}")


def set_title(examples: str) -> str:
    """A set of examples: `adaptive/pgd` → `PGD, adaptive`."""
    condition = of_set(examples)
    return attack_title(condition.variant) + (", adaptive" if condition.kind == "adaptive" else "")
