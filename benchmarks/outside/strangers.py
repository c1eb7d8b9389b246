"""Attacks that fedser does not have, as methods for `fedser.attacks.Adversary`.

ART is the Adversarial Robustness Toolbox: `pip install --no-deps adversarial-robustness-toolbox six tqdm`. `Tanh` is
the attack by which others broke the randomisation further than `eot_pgd` does, written anew from its description.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from fedser.attacks.adversary import each_draw


class ART:
    """One of `art.attacks.evasion`, by its name; x [B, ...] in [0, 1] and labels [B] → x_adv. ART draws from NumPy's
    global generator."""

    def __init__(
        self, model: nn.Module, n_classes: int, seed: int, attack: str, eps: float, step: float = 0.25, **options
    ):
        self.model, self.classes, self.seed, self.attack = model, n_classes, seed, attack
        self.options = options | {"eps": eps, "eps_step": step * eps, "norm": math.inf, "verbose": False}

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        from art.attacks import evasion
        from art.estimators.classification import PyTorchClassifier

        shape, where = tuple(x.shape[1:]), "cpu" if x.device.type == "cpu" else "gpu"
        estimator = PyTorchClassifier(
            self.model, nn.CrossEntropyLoss(), shape, self.classes, clip_values=(0.0, 1.0), device_type=where
        )
        attack = getattr(evasion, self.attack)(estimator, batch_size=len(x), **self.options)
        before = np.random.get_state()
        np.random.seed(self.seed)
        try:
            return torch.from_numpy(attack.generate(x.cpu().numpy(), y.cpu().numpy())).to(x)
        finally:
            np.random.set_state(before)


class Tanh:
    """Through a randomisation: the mean over fresh draws of tanh(best other logit − true logit), ascended by the sign
    of a momentum of 0.75, the step falling from ε/2 with half a cosine."""

    def __init__(self, model: nn.Module, eps: float, steps: int = 100):
        self.model, self.eps, self.steps = model, eps, steps

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        point, momentum = x.clone(), torch.zeros_like(x)
        true = nn.functional.one_hot(y, each_draw(self.model, x[:1]).shape[2]).bool()[:, None]
        for step in range(self.steps):
            with torch.enable_grad():
                point.requires_grad_()
                logits = each_draw(self.model, point)
                best = logits.masked_fill(true, -torch.inf).amax(2)
                lead = torch.tanh(best - logits.masked_fill(~true, -torch.inf).amax(2))
                (gradient,) = torch.autograd.grad(lead.mean(1).sum(), point)
            size = gradient.abs().flatten(1).mean(1).clamp(min=1e-20).view(-1, 1, 1, 1)
            momentum = 0.75 * momentum + gradient / size
            reach = self.eps / 2 * (1 + math.cos(math.pi * step / self.steps)) / 2
            moved = point.detach() + reach * momentum.sign()
            point = torch.minimum(torch.maximum(moved, x - self.eps), x + self.eps)
        return point.detach()
