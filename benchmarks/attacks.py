"""How long the attacks take: fedser's DeepFool against torchattacks', the adapter against torchattacks alone.

    python benchmarks/attacks.py [--json PATH] [--model vgg15|cnn4] [--frames 96] [--inputs 32] [--repeats 1]

One thread, CPU. Both sides attack the same inputs of a lightly trained network with the same settings: true labels,
overshoot at every step, clamped to [0, 1], which the inputs keep well inside of. Runs alternate and medians of
CPU time are shown. By default 32 clips of 96 frames on VGG-15, three minutes; 373 frames take four times as long.
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

from fedser.attacks import Adversary
from fedser.deepfool import DeepFool
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


def compare(ours, theirs, repeats):
    """Median CPU seconds of both, and how far apart their results are."""
    seconds = {"ours": [], "theirs": []}
    for _ in range(repeats):
        for name, function in (("ours", ours), ("theirs", theirs)):
            elapsed, result = timed(function)
            seconds[name].append(elapsed)
            if name == "ours":
                x_adv = result
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "fedser_s": medians["ours"],
        "torchattacks_s": medians["theirs"],
        "times_faster": medians["theirs"] / medians["ours"],
        "largest_difference": (x_adv - result).abs().max().item(),
    }


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
    if arguments.json:
        report = {"model": arguments.model, "inputs": len(x), "accuracy": accuracy, "deepfool_steps": needed, **rows}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
