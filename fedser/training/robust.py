"""The part that methods of adversarial training share: which attack, when, on which clients, at which weights."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from fedser.config import components
from fedser.config.schema import Count, Fraction, Positive, shown
from fedser.errors import InputError
from fedser.features.front_end import on_waveforms
from fedser.models.lengths import takes_lengths
from fedser.randomness import derive
from fedser.training.awp import perturbed
from fedser.training.objective import CrossEntropy, Samples, Step, scores


class Robust(CrossEntropy):
    """The base of objectives that train against an attack: a subclass has the `loss` of a batch.

    attack: the attack to train against, see `fedser.config.interfaces.Attack`. One on waveforms is given these, and a
        model that has the front end in it; its examples go through both in training too.
    start_round: the first round of it; those before are of plain cross-entropy, as the model has little to attack yet.
    client_fraction: the share of the clients who train by it, drawn with the run's seed; the others train by plain
        cross-entropy.
    awp: the radius of an adversarial perturbation of the weights, see `fedser.training.awp`; null for none.
    """

    def __init__(
        self,
        attack: Callable,
        start_round: Count = 1,
        client_fraction: Fraction = 1.0,
        awp: Positive | None = None,
    ):
        self.attack, self.of_waveforms = attack, on_waveforms(attack)
        self.first_round = start_round
        self.client_fraction = client_fraction
        self.awp = awp

    @staticmethod
    def check_options(node: dict, key: str) -> None:
        """Raises InputError where there is no attack to train against, or one that lacks its budget."""
        attack = node.get("attack")
        if not (isinstance(attack, dict) and "_target_" in attack):
            given = attack.get("name") if isinstance(attack, dict) else shown(attack)
            raise InputError(
                f"{key}.attack={given} is no attack to train against: choose one, e.g. attack=fgsm or "
                f"{key}.attack='${{attacks.fgsm}}', or train without it (defence=none or defence=randomise)."
            )
        if "snr" in attack and attack["snr"] is None:
            raise InputError(
                f"{key}.attack.snr=null: attack= has no level that training could take (attack.snr), so set its own, "
                f"e.g. {key}.attack.snr=35."
            )
        if (
            "snr" not in attack
            and attack.get("eps") is None
            and _has_budget(attack.get("method"), f"{key}.attack.method")
        ):
            raise InputError(
                f"{key}.attack.eps=null: attack= has no budget that training could take (attack.eps), so set its own, "
                f"e.g. {key}.attack.eps=0.05."
            )

    def __call__(self, model: nn.Module, batch: Samples, step: Step) -> Tensor:
        """The loss of a batch; `model` is in train mode, but for the attack on it."""
        if step.round < self.first_round:
            return super().__call__(model, batch, step)
        batch = self.attacked(model, batch, step)
        return perturbed(self.loss, model, batch, self.awp) if self.awp else self.loss(model, batch)

    def attacked(self, model: nn.Module, batch: Samples, step: Step) -> Samples:
        """The batch with whatever the loss needs beside it: nothing here."""
        return batch

    def loss(self, model: nn.Module, batch: Samples) -> Tensor:
        """The loss of a batch that has been attacked, a single number."""
        raise NotImplementedError


class Paired(Robust):
    """The base of objectives of samples and their adversarial examples; options beside `per` are `Robust`'s.

    per: "batch" attacks each batch, on the weights as they are then; "round" all samples once, on the weights that the
        client received, which costs as much as one epoch's attacks but not those of `client.epochs`. The attack sees
        the model in eval mode. Per batch it has `client.precision`, per round `client.attack_precision`.
    """

    def __init__(self, per: Literal["batch", "round"] = "batch", **options):
        super().__init__(**options)
        self.per = per

    def start_round(self, model: nn.Module, samples: Samples, *, round: int, seed: int) -> Samples:
        """The samples as they came, with their adversarial examples where those are made once a round."""
        once = self.per == "round" and round >= self.first_round
        return self.paired(model, samples, derive(seed, "attack", round)) if once else samples

    def attacked(self, model: nn.Module, batch: Samples, step: Step) -> Samples:
        """The batch with its adversarial examples, made now where it has none."""
        return self.paired(model, batch, derive(step.seed, "attack")) if batch.adversarial is None else batch

    def paired(self, model: nn.Module, samples: Samples, seed: int) -> Samples:
        """The samples with an adversarial example of each, which nothing is learnt from yet."""
        lengths = samples.lengths if takes_lengths(type(model)) else None
        made = self.attack(self.target(model), samples.x, samples.y, seed, lengths=lengths)
        return replace(samples, adversarial=made)

    def target(self, model: nn.Module) -> nn.Module:
        """The network that the inner attack is made on."""
        return model

    def both(self, model: nn.Module, batch: Samples) -> tuple[Tensor, Tensor]:
        """The logits of the samples and of their adversarial examples [n, K] each, from a pass of its own each: in
        train mode batch norm normalises either by itself."""
        return scores(model, batch.x, batch), scores(model, batch.adversarial, batch)


def divergence(here: Tensor, there: Tensor) -> Tensor:
    """KL(p ‖ q) of the distributions of two sets of logits [n, K], of each sample [n]: Σ p · (log p − log q)."""
    log_p, log_q = here.log_softmax(1), there.log_softmax(1)
    return functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)


def _has_budget(method: dict | None, key: str) -> bool:
    """Whether an `Adversary`'s method has an ε."""
    if not (isinstance(method, dict) and "_target_" in method):
        return False
    return "eps" in components.parameters(components.locate(method["_target_"], key))
