"""What an evaluation costs beyond the network passes that it consists of.

    python benchmarks/evaluation.py [--json PATH] [--width 8] [--repeats 3]

One thread, CPU. Ten clients of eleven test clips of 373 frames, as many as EMO-DB has, are evaluated under
`evaluation=paper` with FGSM, PGD and DeepFool: four conditions, ten draws of the randomisation. Its floor: the same
forward and backward passes, on inputs of the same sizes, through the network in eval mode with its batch norm folded,
and nothing else. The sides take turns; medians of CPU seconds are shown. Goal: at most 1.15.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from fedser.config.compose import compose
from fedser.config.protocol import Protocols
from fedser.config.validation import validate
from fedser.evaluation import measure
from fedser.models.cnn4 import CNN4

CLASSES, CLIENTS, CLIPS, FRAMES, MELS = 7, 10, 11, 373, 64


class Recorder(torch.nn.Module):
    """A network that keeps count of its passes: `passes` is [shape, backward passes] of every forward pass."""

    def __init__(self, model):
        super().__init__()
        self.model, self.passes = model, []

    def forward(self, x):
        record = [tuple(x.shape), 0]
        self.passes.append(record)
        if x.requires_grad:
            x = x.view_as(x)  # a hook on x itself would outlive this pass
            x.register_hook(lambda gradient: record.__setitem__(1, record[1] + 1))
        return self.model(x)


def replay(model, passes):
    """The recorded passes and nothing else, gradients to the input alone."""
    for shape, backward in passes:
        inputs = torch.randn(shape).requires_grad_(backward > 0)
        with torch.set_grad_enabled(backward > 0):
            logits = model(inputs)
        for number in range(backward):
            labels = torch.full((shape[0],), number % CLASSES)
            torch.autograd.grad(F.cross_entropy(logits, labels), inputs, retain_graph=number + 1 < backward)


def seconds(work) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--width", type=int, default=8, help="of CNN-4")
    parser.add_argument("--repeats", type=int, default=3, help="how often the sides take turns")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    settings = validate(compose(["evaluation.attacks=[fgsm,pgd,deepfool]", f"features.frames={FRAMES}"]))
    protocols = Protocols.of(settings)
    protocol, randomise = protocols.final, settings.defence.inference.build()
    adversaries = {name: attack.build() for name, attack in protocols.attacks.items()}
    model = CNN4(CLASSES, width=arguments.width).eval()
    x = torch.randn(CLIENTS, CLIPS, 1, FRAMES, MELS)
    y = torch.arange(CLIPS) % CLASSES

    def evaluate(network):
        for client in x:
            options = {"attacks": adversaries, "randomise": randomise, "batch_size": 64, "seed": 0}
            measure.evaluate(network, client, y, protocol, **options)

    recorder = Recorder(model)
    evaluate(recorder)
    model.requires_grad_(False)
    ours, floor = [], []
    for _ in range(arguments.repeats):
        ours.append(seconds(lambda: evaluate(model)))
        floor.append(seconds(lambda: replay(model, recorder.passes)))
    report = {
        "fedser_seconds": statistics.median(ours),
        "floor_seconds": statistics.median(floor),
        "ratio": statistics.median(ours) / statistics.median(floor),
        "forward_per_clip": sum(shape[0] for shape, _ in recorder.passes) / (CLIENTS * CLIPS),
        "backward_per_clip": sum(shape[0] * count for shape, count in recorder.passes) / (CLIENTS * CLIPS),
    }
    print(f"CNN-4 of width {arguments.width}, {CLIENTS} clients of {CLIPS} clips, {protocol.draws} draws\n")
    print(
        f"evaluation {report['fedser_seconds']:.2f} s, its passes alone {report['floor_seconds']:.2f} s: "
        f"{report['ratio']:.2f} times (goal: 1.15)"
    )
    print(f"per clip {report['forward_per_clip']:.1f} forward and {report['backward_per_clip']:.1f} backward passes")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
