"""Several attacks as one: per sample the worst that any of them does.

>>> ensemble = hydra.utils.instantiate(config.attacks.ensemble)
>>> x_adv = ensemble(model, x, y, seed=0)
"""

import torch
from torch import Tensor
from torch.nn import functional

from fedser.attacks.adversary import defended, known_labels, samples_at_a_time, threat, undisturbed
from fedser.config import components
from fedser.config.schema import shown
from fedser.errors import InputError
from fedser.models.lengths import logits
from fedser.randomness import derive

KINDS = ("white-box", "transfer", "black-box", "no knowledge")  # from much to little


class Ensemble:
    """The worst of several attacks per sample; the interface of `fedser.attacks.Adversary`.

    One after the other, each member attacks the samples that are still classified correctly (Croce & Hein 2020, §6).
    Of a sample that none fools, the version with the highest cross-entropy is returned; one that is wrong from the
    start is left as it is. Where a randomisation is known, a sample is attacked as long as any of its draws is right,
    and the version that the fewest draws get right is returned: that the mean of the draws is fooled does not mean
    that a fresh draw is, and AutoAttack's own `rand` version goes by a single one.

    eps, labels, box: of every member (see `Adversary`), whatever its own file says; `norm` is the members' own, and
        they must agree on it. A member without a budget is refused: its changes would be of another size.
    members: settings of attacks by name, as in `conf/attack`; a name set to null is left out.
    rand: the members that attack where a randomisation is known, None for the same ones.

    Raises InputError that names the member whose settings are wrong.
    """

    adaptive = False

    def __init__(self, name: str, eps, labels, members: dict, rand: dict | None = None, norm: str = "Linf", box=None):
        self.name = name
        self.eps = eps
        self.labels = known_labels(labels)
        self.norm = norm
        self.box = None if box is None else tuple(box)
        self.members = self._build("members", members)
        self.rand = self.members if rand is None else self._build("rand", rand)

    @staticmethod
    def check_options(node: dict, key: str) -> None:
        """Raises InputError for members that are no attacks, or whose settings are wrong."""
        for part in ("members", "rand"):
            members = node.get(part) or {}
            if not isinstance(members, dict) or not all(isinstance(member, dict | None) for member in members.values()):
                raise InputError(f"{key}.{part}={shown(members)} must be settings of attacks by name.")
            for name, member in members.items():
                if member:
                    components.component(f"{key}.{part}.{name}", member, name).check()

    def _build(self, key: str, members: dict) -> dict:
        shared = {"eps": self.eps, "labels": self.labels, "box": self.box}
        built = {
            member: components.build({**node, "name": member, **shared}, key=f"{self.name}.{key}.{member}")
            for member, node in members.items()
            if node
        }
        if not built:
            raise InputError(f"attack.{key} of {self.name} has no attack: an ensemble needs at least one.")
        for member, attack in built.items():
            if attack.eps is None:
                raise InputError(
                    f"attack.{key} of {self.name}: {member} has no eps, it looks for the smallest change, and can't be "
                    "compared with attacks of one budget: leave it out."
                )
            if attack.norm != self.norm:
                raise InputError(
                    f"attack.{key} of {self.name}: {member} is measured in {attack.norm}, not {self.norm}."
                )
        return built

    @property
    def knowledge(self) -> str:
        """The most that any of its members knows."""
        kinds = {attack.knowledge for attack in self.members.values()}
        return next(kind for kind in KINDS if kind in kinds)

    @property
    def least_classes(self) -> int:
        """How many classes a model must tell apart for all members to work."""
        return max(attack.least_classes for attack in (*self.members.values(), *self.rand.values()))

    @property
    def eot(self) -> int:
        """Draws of a known randomisation that decide whether a sample is fooled."""
        return max(attack.eot for attack in self.rand.values())

    def __call__(self, model, x, y, seed, *, predictions=None, batch_size=None, randomise=None, lengths=None) -> Tensor:
        """Attacks `model` as `Adversary` does: x [B, 1, T, F], y [B] -> x_adv of x's shape, detached.

        Raises BudgetError if a member's budget did not hold.
        """
        x_adv = x.detach().clone()
        if len(x) == 0:
            return x_adv
        settings = {"batch_size": batch_size, "randomise": randomise}
        scores = self._logits(model, x, derive(seed, "original"), lengths=lengths, **settings)
        predicted = scores.mean(1).argmax(1) if predictions is None or randomise is not None else predictions
        labels = y if self.labels == "true" else predicted
        right, loss = _judge(scores, labels)
        for name, member in (self.members if randomise is None else self.rand).items():
            rows = (right > 0).nonzero()[:, 0]
            if len(rows) == 0:
                break
            some = None if lengths is None else lengths[rows]
            made = member(model, x[rows], labels[rows], derive(seed, name), lengths=some, **settings)
            scores = self._logits(model, made, derive(seed, name, "tested"), lengths=some, **settings)
            made_right, made_loss = _judge(scores, labels[rows])
            worse = (made_right < right[rows]) | ((made_right == right[rows]) & (made_loss > loss[rows]))
            x_adv[rows[worse]] = made[worse]
            right[rows[worse]], loss[rows[worse]] = made_right[worse], made_loss[worse]
        return x_adv

    def _logits(self, model, x, seed, *, batch_size, randomise, lengths) -> Tensor:
        """[B, draws, classes] of what is attacked, in eval mode: of fresh draws where a randomisation is known."""
        attacked = defended(model, randomise, self.eot)
        size = samples_at_a_time(attacked, x, batch_size)
        chunks = zip(x.split(size), [None] * len(x) if lengths is None else lengths.split(size), strict=False)
        with undisturbed(attacked, x.device, seed), torch.no_grad():
            if randomise is None:
                return torch.cat([logits(attacked, *part)[:, None] for part in chunks])
            return torch.cat([attacked.each(*part) for part in chunks])

    def __str__(self):
        """The threat model in one line."""
        options = [f"per sample the worst of {', '.join(self.members)}"]
        if self.rand is not self.members:
            options.append(f"or of {', '.join(self.rand)} where a randomisation is known (mean of {self.eot} draws)")
        return threat(self, *options)


def _judge(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Per sample [B] the share of its draws that are classified as its label, and the cross-entropy of their mean."""
    right = (logits.argmax(2) == labels[:, None]).float().mean(1)
    return right, functional.cross_entropy(logits.mean(1), labels, reduction="none")
