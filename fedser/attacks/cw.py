"""Carlini & Wagner's L2 attack in feature units, for a whole batch at once.

>>> CW(model, steps=100, searches=5)(x, y)
"""

import torch
from torch import Tensor
from torchattacks.attack import Attack

from fedser.attacks.adversary import SURE, among, clipped, draws_anew, each_draw, margin
from fedser.config.schema import Count, NonNegative, Positive


class CW(Attack):
    """The smallest L2 change that fools, by optimisation (Carlini & Wagner, S&P 2017, §V.A and §VI.A).

    Minimises |change|² + c · max(margin + kappa, 0) with Adam, and finds the smallest c that fools, per sample, by
    binary search. Adam moves the change itself: the paper's tanh keeps images in [0, 1], and features have no bounds
    (`clip`, where there are some, is a projection). torchattacks' CW has the tanh and one c for all.

    On a model that draws anew in every pass, each draw has a margin of its own. Their mean is minimised, and a point
    fools if nine in ten draws say so, and nine in ten of twice as many fresh ones: of some hundred points a few fool by
    luck, and the nearest is among them.

    A sample that is predicted wrongly from the start, or never fooled, is left as it is. Wrongly means by nine draws in
    ten: a sample whose mean is wrong may still be right in many.

    c: the first weight tried, in squared units of x per logit; ten times that as long as nothing fools.
    kappa: by how many logits another class shall lead.
    steps: of Adam, per c.
    searches: how many c are tried.
    lr: Adam's step, in the units of x.
    clip: (low, high) that x is kept in, or None for features without bounds.
    """

    def __init__(
        self,
        model,
        c: Positive = 1.0,
        kappa: NonNegative = 0.0,
        steps: Count = 100,
        searches: Count = 5,
        lr: Positive = 0.01,
        clip=None,
    ):
        super().__init__("CW", model)
        self.c = c
        self.kappa = kappa
        self.steps = steps
        self.searches = searches
        self.lr = lr
        self.clip = clip

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """x_adv of x [B, ...] and labels [B]; same shape, detached."""
        x_adv = images.detach().clone()
        with torch.no_grad():
            right = (~_mostly(self._margins(x_adv, labels) < 0)).nonzero()[:, 0]
        if len(right):
            with among(self.model, right):
                x_adv[right] = self._search(x_adv[right], labels[right])
        return x_adv

    def _search(self, x: Tensor, labels: Tensor) -> Tensor:
        """The nearest points found that fool, x where none was; the binary search over c."""
        c = torch.full_like(x.flatten(1)[:, 0], self.c)
        low, high = torch.zeros_like(c), torch.full_like(c, torch.inf)
        best, nearest = x.clone(), torch.full_like(c, torch.inf)
        for _ in range(self.searches):
            found, distance = self._descend(x, labels, c)
            fooled = distance < torch.inf
            nearer = distance < nearest
            best[nearer], nearest = found[nearer], torch.minimum(distance, nearest)
            high = torch.where(fooled, torch.minimum(high, c), high)
            low = torch.where(fooled, low, torch.maximum(low, c))
            c = torch.where(high < torch.inf, (low + high) / 2, 10 * c)
        return best

    def _descend(self, x: Tensor, labels: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Adam from x for these c [B]: the nearest iterates that fool, and how far [B] they are (inf: none does)."""
        change = torch.zeros_like(x, requires_grad=True)
        adam = torch.optim.Adam([change], lr=self.lr)
        best, nearest = x.clone(), torch.full_like(c, torch.inf)
        for _ in range(self.steps):
            with torch.enable_grad():
                point = clipped(x + change, self.clip)
                squared = (point - x).flatten(1).square().sum(1)
                led = self._margins(point, labels) + self.kappa
                (change.grad,) = torch.autograd.grad((squared + c * led.clamp(min=0).mean(1)).sum(), change)
            distance = torch.where(_mostly(led < 0), squared.detach(), torch.inf)
            nearer = self._confirmed(distance < nearest, point.detach(), labels)
            distance = torch.where(nearer, distance, torch.inf)
            best[nearer], nearest = point.detach()[nearer], torch.minimum(distance, nearest)
            adam.step()
        return best, nearest

    def _margins(self, x: Tensor, labels: Tensor) -> Tensor:
        """[B, draws]."""
        logits = each_draw(self.model, x)
        return margin(logits.flatten(0, 1), labels.repeat_interleave(logits.shape[1])).unflatten(0, logits.shape[:2])

    @torch.no_grad()
    def _confirmed(self, found: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        """Those of `found` [B] that fool fresh draws too; all, where nothing is drawn."""
        if not (draws_anew(self.model) and found.any()):
            return found
        sure = found.clone()
        with among(self.model, found):
            fresh = torch.cat([self._margins(x[found], labels[found]) for _ in range(2)], dim=1)
        sure[found] = _mostly(fresh + self.kappa < 0)
        return sure


def _mostly(fooled: Tensor) -> Tensor:
    """[B, draws] -> [B]."""
    return fooled.float().mean(1) >= SURE
