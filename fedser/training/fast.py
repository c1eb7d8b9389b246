"""Fast adversarial training (Wong et al., ICLR 2020): the loss of one FGSM step of 1.25 ε from a random start within ε.

L = CE(f(x′), y), as with PGD at a fraction of its cost (`defence/training/attack=fgsm_random`). Its known failure is
catastrophic overfitting: within an epoch the network learns to fool the single step and falls to any attack of several.
So now and then a few samples are attacked by a short PGD too, and the user is told when only the single step fails.
"""

from functools import partial

import torch
import torchattacks
from torch import Tensor, nn

from fedser.attacks.adversary import Adversary, undisturbed
from fedser.config.schema import Count, Whole
from fedser.errors import InputError
from fedser.randomness import derive
from fedser.training.madry import Madry
from fedser.training.objective import Samples, Step, scores
from fedser.training.robust import Robust

FEW = 16  # samples compared at a time
GAP = 0.5  # of them right under the single step and not under PGD: catastrophic overfitting, which takes nearly all
REMARK = (
    "most samples of a batch were right under the single step of fast adversarial training and wrong under PGD: "
    "catastrophic overfitting. The model only looks robust: choose defence/training=madry, or a smaller ε."
)


class Fast(Madry):
    """check_every: in rounds that this divides, each client's first batch is compared; 0 for never.
    check_steps: of the PGD that it is compared under."""

    def __init__(self, check_every: Whole = 10, check_steps: Count = 5, **options):
        super().__init__(**options)
        self.check_every, self.check_steps = check_every, check_steps
        self.remarks = []

    @staticmethod
    def check_options(node: dict, key: str) -> None:
        """Raises InputError for an attack in dB too: nothing watches it for catastrophic overfitting."""
        Robust.check_options(node, key)
        if "snr" in node["attack"]:
            raise InputError(
                f"{key}.attack={node['attack'].get('name')}: fast adversarial training is watched by a PGD in ε, which "
                "an attack in dB has not: choose defence/training=madry."
            )

    def attacked(self, model: nn.Module, batch: Samples, step: Step) -> Samples:
        """The batch with its adversarial examples."""
        batch = super().attacked(model, batch, step)
        first = step.epoch == step.number == 0
        if first and self.check_every and step.round % self.check_every == 0 and self.overfits(model, batch, step):
            self.remarks.append(REMARK)
        return batch

    def overfits(self, model: nn.Module, batch: Samples, step: Step) -> bool:
        """Whether the model in eval mode withstands the batch's own examples and not those of a PGD of equal ε."""
        few, seed = batch[torch.arange(min(FEW, len(batch)), device=batch.x.device)], derive(step.seed, "check")
        attack = self.attack
        method = partial(torchattacks.PGD, random_start=True)
        pgd = Adversary("pgd", attack.eps, "true", method, box=attack.box, steps=self.check_steps, alpha=None)
        strong = pgd(model, few.x, few.y, seed, lengths=few.lengths)
        with undisturbed(model, few.x.device, seed), torch.no_grad():
            right = [share_right(model, x, few) for x in (few.adversarial, strong)]
        return right[0] - right[1] >= GAP


def share_right(model: nn.Module, x: Tensor, samples: Samples) -> float:
    """The share of inputs x that are classified as the samples' labels."""
    return (scores(model, x, samples).argmax(1) == samples.y).float().mean().item()
