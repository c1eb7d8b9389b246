"""How long the attacks take: fedser's against torchattacks', and against the network passes that they consist of.

    python benchmarks/attacks.py [--json PATH] [--model vgg15|cnn4] [--frames 96] [--inputs 32] [--repeats 1]

One thread, CPU. The first table is fedser's DeepFool against torchattacks', and the adapter against torchattacks alone.
Both sides attack the same inputs of a lightly trained network with the same settings: true labels, overshoot at every
step, clamped to [0, 1], which the inputs keep well inside of.

The second table is the attacks as they are trained against (`conf/attack`: predicted labels, no box) against their
floor: the same number of forward passes and backward passes to the input, on the same inputs in batches of the same
size, through the network in eval mode with its batch norm folded, and nothing else. The pass that finds the predicted
labels counts in where there is one; `labels` is what it takes (FGSM and DeepFool find them in their first step).

Runs alternate and medians of CPU time are shown, of three times as many for the second table, whose ratios are close to
one. By default 32 clips of 96 frames on VGG-15, five minutes; 373 frames take four times as long.
"""

import argparse
import json
import statistics
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
import torchattacks

from fedser.attacks import CPU_CHUNK, Adversary
from fedser.attacks.deepfool import DeepFool
from fedser.config.compose import compose
from fedser.config.validation import validate
from fedser.models.cnn4 import CNN4
from fedser.models.vgg15 import VGG15

CLASSES = 7


def samples(n, frames, generator):
    """n inputs [n, 1, frames, 64] about 0.5 ± 0.1, each a noisy copy of its class's smooth pattern, and labels [n]."""
    patterns = torch.randn(CLASSES, 1, 6, 4, generator=torch.Generator().manual_seed(0))
    patterns = F.interpolate(patterns, (frames, 64), mode="bilinear", align_corners=True)
    y = torch.arange(n) % CLASSES
    noise = torch.randn(n, 1, frames, 64, generator=generator)
    return (0.5 + 0.06 * patterns[y] + 0.08 * noise).clamp(0.02, 0.98), y


def lightly_trained(model, frames, generator, steps=25, batch_size=14):
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(steps):
        x, y = samples(batch_size, frames, generator)
        optimiser.zero_grad()
        F.cross_entropy(model.train()(x), y).backward()
        optimiser.step()
    # Running statistics that follow 25 batches slowly would not fit the weights: estimate them once more.
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        for _ in range(5):
            model(samples(batch_size, frames, generator)[0])
    model.zero_grad()
    return model.eval()


def timed(function):
    start = time.process_time()  # of one thread, so that other programs on the machine count little
    result = function()
    return time.process_time() - start, result


def alternate(functions, repeats):
    """Median CPU seconds of each function, and what each returned last."""
    seconds, results = {name: [] for name in functions}, {}
    for _ in range(repeats):
        for name, function in functions.items():
            elapsed, results[name] = timed(function)
            seconds[name].append(elapsed)
    return {name: statistics.median(values) for name, values in seconds.items()}, results


def compare(ours, theirs, repeats):
    """Median CPU seconds of both, and how far apart their results are."""
    medians, results = alternate({"ours": ours, "theirs": theirs}, repeats)
    return {
        "fedser_s": medians["ours"],
        "torchattacks_s": medians["theirs"],
        "times_faster": medians["theirs"] / medians["ours"],
        "largest_difference": (results["ours"] - results["theirs"]).abs().max().item(),
    }


class Recorder(torch.nn.Module):
    """A network that keeps count of its passes: `passes` is [samples, backward passes] of every forward pass."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.passes = []

    def forward(self, x):
        record = [len(x), 0]
        self.passes.append(record)
        if x.requires_grad:
            x = x.view_as(x)  # a hook on x itself would outlive this pass
            x.register_hook(lambda gradient: record.__setitem__(1, record[1] + 1))
        return self.model(x)


def replay(model, x, passes):
    """The recorded passes and nothing else, gradients to the input alone."""
    for samples, backward in passes:
        inputs = x[:samples].clone().requires_grad_(backward > 0)
        with torch.set_grad_enabled(backward > 0):
            logits = model(inputs)
        for number in range(backward):  # DeepFool: one for each class but the label
            labels = torch.full((samples,), number % CLASSES)
            loss = F.cross_entropy(logits, labels, reduction="sum")
            torch.autograd.grad(loss, inputs, retain_graph=number + 1 < backward)


def over_floor(attack, model, x, repeats):
    """Median CPU seconds of the attack and of its floor, and the passes that both consist of."""
    recorder = Recorder(model)
    attack(recorder, x, None, 0)
    floor = {
        "ours": lambda: attack(model, x, None, 0),
        "floor": lambda: replay(model, x, recorder.passes),
        # The first pass of each chunk is the one that predicts the labels: it has as many samples as the chunk.
        "labels": lambda: replay(model, x, [[samples, 0] for samples in chunks(len(x))]),
    }
    model.requires_grad_(False)  # as the adapter does, or the folded weights would have a graph of their own
    medians, _ = alternate(floor, repeats)
    model.requires_grad_(True)
    return {
        "fedser_s": medians["ours"],
        "floor_s": medians["floor"],
        "labels_s": medians["labels"],
        "over_floor": medians["ours"] / medians["floor"],
        "forward_per_input": sum(samples for samples, _ in recorder.passes) / len(x),
        "backward_per_input": sum(samples * backward for samples, backward in recorder.passes) / len(x),
    }


def chunks(n):
    """The sizes of the batches that the adapter attacks n samples in."""
    return [len(rows) for rows in torch.arange(n).split(CPU_CHUNK)]


def moves(model, x, y, most):
    """How many DeepFool steps each sample needs, `most` if more; 0 for one that is already wrong."""
    needed = torch.zeros(len(x), dtype=torch.long)
    for steps in range(most):
        x_adv = DeepFool(model, steps, overshoot_at="step", clip=(0, 1))(x, y)
        needed += model(x_adv).argmax(1) == y
    return needed


def measure(model, x, y, repeats):
    deepfool = {"steps": 5, "overshoot": 0.02}
    fgsm, pgd = {"eps": 0.01}, {"eps": 0.01, "alpha": 0.0025, "steps": 5, "random_start": False}

    def adversary(method, eps, **settings):
        attack = Adversary("benchmark", eps, "true", method, box=(0, 1), **settings)
        return lambda: attack(model, x, y, 0)

    def bare(method, settings):
        return lambda: method(model, **settings)(x, y)

    same = partial(DeepFool, overshoot_at="step", clip=(0, 1))
    return {
        "deepfool": compare(bare(same, deepfool), bare(torchattacks.DeepFool, deepfool), repeats),
        "deepfool, adapter": compare(
            adversary(partial(DeepFool, overshoot_at="step"), None, **deepfool),
            bare(torchattacks.DeepFool, deepfool),
            repeats,
        ),
        "fgsm, adapter": compare(adversary(torchattacks.FGSM, **fgsm), bare(torchattacks.FGSM, fgsm), repeats),
        "pgd, adapter": compare(adversary(torchattacks.PGD, **pgd), bare(torchattacks.PGD, pgd), repeats),
    }


def measure_floors(model, x, repeats):
    adversaries = {name: validate(compose([f"attack={name}"])).attack.build() for name in ("fgsm", "pgd", "deepfool")}
    return {f"{name}, floor": over_floor(attack, model, x, repeats) for name, attack in adversaries.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--model", choices=["vgg15", "cnn4"], default="vgg15")
    parser.add_argument("--frames", type=int, default=96)
    parser.add_argument("--inputs", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model = {"cnn4": partial(CNN4, width=8), "vgg15": VGG15}[arguments.model](CLASSES)
    model = lightly_trained(model, arguments.frames, generator)
    x, y = samples(arguments.inputs, arguments.frames, generator)
    accuracy = (model(x).argmax(1) == y).float().mean().item()
    needed = torch.bincount(moves(model, x, y, 5), minlength=6).tolist()
    print(f"{arguments.model}, {len(x)} inputs of {arguments.frames} × 64, accuracy {accuracy:.2f}, one thread")
    print(f"inputs by DeepFool steps needed, 0 to 5: {needed}\n")

    rows = measure(model, x, y, arguments.repeats)
    print(f"{'':20}{'fedser':>10}{'torchattacks':>14}{'ratio':>8}{'difference':>12}")
    for name, row in rows.items():
        print(
            f"{name:20}{row['fedser_s']:9.2f}s{row['torchattacks_s']:13.2f}s{row['times_faster']:8.2f}"
            f"{row['largest_difference']:12.1e}"
        )
    floors = measure_floors(model, x, 3 * arguments.repeats)
    print(f"\n{'as trained against':20}{'fedser':>10}{'floor':>10}{'labels':>10}{'ratio':>8}   passes per input")
    for name, row in floors.items():
        passes = f"{row['forward_per_input']:.1f} forward, {row['backward_per_input']:.1f} backward"
        print(
            f"{name.split(',')[0]:20}{row['fedser_s']:9.3f}s{row['floor_s']:9.3f}s{row['labels_s']:9.3f}s"
            f"{row['over_floor']:8.3f}   {passes}"
        )
    rows |= floors
    if arguments.json:
        report = {"model": arguments.model, "inputs": len(x), "accuracy": accuracy, "deepfool_steps": needed, **rows}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
