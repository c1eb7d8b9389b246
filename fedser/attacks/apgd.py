"""Auto-PGD: projected gradient descent that finds its own step size (Croce & Hein, ICML 2020).

>>> APGD(model, eps=0.05, steps=100, loss="dlr")(x, y)
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional
from torchattacks.attack import Attack

from fedser.attacks.adversary import among, clipped, margin
from fedser.config.schema import Count, NonNegative, Share
from fedser.errors import InputError

MOMENTUM = 0.75  # share of a step that is new, the rest goes where the last one went (α of Alg. 1)
TARGETS = 9  # classes that the targeted version aims at, at most, from the most probable one down


class APGD(Attack):
    """Auto-PGD in L∞ (Croce & Hein 2020, Alg. 1): the step starts at 2 eps and is halved where the loss does not rise.

    Differs from torchattacks' in what it returns: per sample the iterate at which the label's logit falls furthest
    behind (theirs gives back the original where the model held, which is no attack on a randomised model), in taking
    the random start from torch's generator as it stands, and in aiming at as many classes as there are.

    eps: how far a cell moves, in the units of x.
    loss: "ce", the cross-entropy; "dlr", the difference of logits ratio (§4, at least 3 classes), which a confident
        model does not flatten; "targeted", the latter towards one other class after the other (at least 4 classes),
        each on the samples that are not fooled yet.
    rho: the share of steps that have to raise the loss, or the step is halved.
    clip: (low, high) that x is kept in, or None for features without bounds.
    """

    def __init__(
        self,
        model,
        eps: NonNegative = 8 / 255,
        steps: Count = 100,
        loss: Literal["ce", "dlr", "targeted"] = "ce",
        rho: Share = 0.75,
        clip=None,
    ):
        super().__init__("APGD", model)
        if loss not in ("ce", "dlr", "targeted"):
            raise InputError(f"APGD's loss is 'ce', 'dlr' or 'targeted', not {loss!r}")
        self.eps = eps
        self.steps = steps
        self.loss = loss
        self.rho = rho
        self.clip = clip

    @staticmethod
    def least_classes(loss: str = "ce", **_) -> int:
        """How many classes a loss needs: DLR compares with the third largest logit, its targeted version the fourth."""
        return {"ce": 2, "dlr": 3, "targeted": 4}.get(loss, 2)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """x_adv of x [B, ...] and labels [B]; same shape, detached."""
        x = images.detach()
        with torch.no_grad():
            logits = self.get_logits(x)
        self._check(logits.shape[1])
        if self.loss != "targeted":
            loss = functional.cross_entropy if self.loss == "ce" else dlr
            return self._run(x, labels, self._start(x), lambda z, rows: loss(z, labels[rows], reduction="none"))[0]
        return self._each_target(x, labels, logits.scatter(1, labels[:, None], -torch.inf))

    def _each_target(self, x: Tensor, labels: Tensor, others: Tensor) -> Tensor:
        """One run per other class, the likeliest first, on the samples that are not fooled yet."""
        targets = others.argsort(1, descending=True)[:, : min(TARGETS, others.shape[1] - 1)]
        starts = self._start(x, targets.shape[1])
        best, lowest = x.clone(), torch.full_like(others[:, 0], torch.inf)
        for number in range(targets.shape[1]):
            active = (lowest >= 0).nonzero()[:, 0]
            if len(active) == 0:
                break
            label, target = labels[active], targets[active, number]
            with among(self.model, active):
                found, found_margin = self._run(
                    x[active],
                    label,
                    starts[active, number],
                    lambda z, rows, label=label, target=target: targeted_dlr(z, label[rows], target[rows]),
                )
            lower = found_margin < lowest[active]
            best[active[lower]] = found[lower]
            lowest[active[lower]] = found_margin[lower]
        return best

    def _start(self, x: Tensor, runs: int | None = None) -> Tensor:
        """Random changes [B, (runs,) ...] whose largest cell is eps; drawn sample by sample."""
        shape = x.shape if runs is None else (len(x), runs, *x.shape[1:])
        noise = 2 * torch.rand(shape, dtype=x.dtype, device=x.device) - 1
        axes = tuple(range(noise.dim() - x.dim() + 1, noise.dim()))
        return self.eps * noise / noise.abs().amax(axes, keepdim=True)

    def _run(self, x: Tensor, labels: Tensor, start: Tensor, loss) -> tuple[Tensor, Tensor]:
        """Maximises `loss(logits, rows)` [B] from x + start; the iterates of lowest margin, and their margins [B]."""
        rows = torch.arange(len(x), device=x.device)

        def at(point: Tensor) -> "_Iterate":
            with torch.enable_grad():
                point = point.detach().requires_grad_()
                logits = self.get_logits(point)
                value = loss(logits, rows)
                (gradient,) = torch.autograd.grad(value.sum(), point)
            return _Iterate(point.detach(), value.detach(), gradient, margin(logits.detach(), labels))

        here = at(self._project(x + start, x))
        before, best, lowest = here.point, here, here
        schedule = _Steps(2 * self.eps, here.loss, self.steps, self.rho)
        for step in range(self.steps):
            size = schedule.size.view(-1, *[1] * (x.dim() - 1))
            ahead = self._project(here.point + size * here.gradient.sign(), x)
            share = MOMENTUM if step else 1.0
            point = here.point + share * (ahead - here.point) + (1 - share) * (here.point - before)
            before, here = here.point, at(self._project(point, x))
            best = best.replaced(here.loss > best.loss, here)
            lowest = lowest.replaced(here.margin < lowest.margin, here)
            stuck = schedule.stuck(here.loss, best.loss)
            if stuck is not None:
                here = here.replaced(stuck, best)
        return lowest.point, lowest.margin

    def _project(self, point: Tensor, x: Tensor) -> Tensor:
        point = torch.minimum(torch.maximum(point, x - self.eps), x + self.eps)
        return clipped(point, self.clip)

    def _check(self, classes: int) -> None:
        needed = self.least_classes(self.loss)
        if classes < needed:
            raise InputError(f"APGD's loss '{self.loss}' needs at least {needed} classes, not {classes}: choose 'ce'.")


@dataclass(frozen=True)
class _Iterate:
    """Where each of B samples is: point and gradient [B, ...], loss and margin [B]."""

    point: Tensor
    loss: Tensor
    gradient: Tensor
    margin: Tensor

    def replaced(self, where: Tensor, other: "_Iterate") -> "_Iterate":
        """The other's samples where `where` [B] holds."""
        wide = where.view(-1, *[1] * (self.point.dim() - 1))
        return _Iterate(
            torch.where(wide, other.point, self.point),
            torch.where(where, other.loss, self.loss),
            torch.where(wide, other.gradient, self.gradient),
            torch.where(where, other.margin, self.margin),
        )


class _Steps:
    """The step size of each sample, and when it is halved (Croce & Hein 2020, §3.1: checkpoints w_j, conditions 1, 2).

    The first checkpoint is after 0.22 of the steps, each interval by 0.03 shorter than the one before, at least 0.06.
    """

    def __init__(self, size: float, loss: Tensor, steps: int, rho: float):
        self.size = torch.full_like(loss, size)
        self.rho = rho
        self.interval = max(int(0.22 * steps), 1)
        self.shortest, self.shorter = max(int(0.06 * steps), 1), max(int(0.03 * steps), 1)
        self.taken = 0  # since the last checkpoint
        self.rises = torch.zeros_like(loss)
        self.last, self.best = loss, loss  # of the step before; the best one at the last checkpoint
        self.halved = torch.ones_like(loss, dtype=torch.bool)  # at the last checkpoint

    def stuck(self, loss: Tensor, best: Tensor) -> Tensor | None:
        """Which samples [B] have had their step halved just now and go back to their best; None between checkpoints."""
        self.taken += 1
        self.rises += loss > self.last
        self.last = loss
        if self.taken < self.interval:
            return None
        stuck = (self.rises <= self.rho * self.interval) | (~self.halved & (best <= self.best))
        self.size = torch.where(stuck, self.size / 2, self.size)
        self.halved, self.best = stuck, best
        self.rises = torch.zeros_like(loss)
        self.taken, self.interval = 0, max(self.interval - self.shorter, self.shortest)
        return stuck


def dlr(logits: Tensor, labels: Tensor, reduction: str = "none") -> Tensor:
    """Difference of logits ratio [B] (Croce & Hein 2020, Eq. 6): -margin over the gap from the first to the third."""
    ranked = logits.sort(1, descending=True)[0]
    return -margin(logits, labels) / (ranked[:, 0] - ranked[:, 2] + 1e-12)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """DLR [B] towards a class (Croce & Hein 2020, Eq. 7)."""
    ranked = logits.sort(1, descending=True)[0]
    ahead = (logits.gather(1, labels[:, None]) - logits.gather(1, targets[:, None]))[:, 0]
    return -ahead / (ranked[:, 0] - (ranked[:, 2] + ranked[:, 3]) / 2 + 1e-12)
