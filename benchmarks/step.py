"""The local step, and a step of an attack: fedser's against plain PyTorch's, on one thread of a CPU.

    python benchmarks/step.py [--json PATH] [--repeats 3] [--steps 40] [--only cnn4 …]

*eager* is the same network without what fedser adds: FEDSER_KERNELS=0 leaves batch norm, pooling, ReLU and the input's
gradient to PyTorch, and freed memory goes back to the system, as it does by default. *fedser* is what clients do,
*bf16* the same with client.precision=bf16, which pays where the processor multiplies 16 bits (AMX). The sides are
processes of their own and take turns; figures are medians of a step's seconds of CPU over all of them. In float32 the
losses after the last step are the same to the bit, which is checked.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

NETWORKS = {"cnn4": 8, "statcnn": 4, "cnn4 of width 64": 8, "vgg15": 4}  # → samples a batch
SIDES = ("eager", "fedser", "bf16")


def network(name):
    from fedser.models.cnn4 import CNN4
    from fedser.models.statcnn import StatCNN
    from fedser.models.vgg15 import VGG15

    made = {"cnn4": lambda: CNN4(7, width=8), "statcnn": lambda: StatCNN(7), "vgg15": lambda: VGG15(7)}
    return made.get(name, lambda: CNN4(7, width=64))()


def measure(name, side, steps):
    """{"train": seconds of each step, "attack": …, "loss": of the last step} in this process."""
    import torch

    from fedser.federation import allocator
    from fedser.models.lengths import logits
    from fedser.training.local import autocast

    if side != "eager":
        allocator.keep_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, batch = network(name).train(), NETWORKS[name]
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    x, y, lengths = torch.randn(batch, 1, 373, 64), torch.arange(batch) % 7, torch.full((batch,), 373)
    precision, seconds = "bf16" if side == "bf16" else "fp32", {"train": [], "attack": []}
    for _ in range(steps):
        began = time.process_time()
        optimizer.zero_grad(set_to_none=True)
        with autocast(precision, x.device):
            loss = torch.nn.functional.cross_entropy(logits(model, x, lengths).float(), y)
        loss.backward()
        optimizer.step()
        seconds["train"].append(time.process_time() - began)
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for _ in range(steps):
        leaf = x.clone().requires_grad_()
        began = time.process_time()
        with autocast(precision, x.device):
            torch.autograd.grad(torch.nn.functional.cross_entropy(logits(model, leaf, lengths).float(), y), leaf)
        seconds["attack"].append(time.process_time() - began)
    return {key: values[1:] for key, values in seconds.items()} | {"loss": loss.item()}


def process(name, side, steps):
    """`measure` in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | ({"FEDSER_KERNELS": "0"} if side == "eager" else {})
    command = [sys.executable, __file__, "--measure", name, side, str(steps)]
    return json.loads(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--repeats", type=int, default=3, help="how often the sides take turns")
    parser.add_argument(
        "--steps", type=int, default=40, help="of each turn of a small network; large ones take a tenth"
    )
    parser.add_argument("--only", nargs="*", choices=NETWORKS, default=list(NETWORKS), help="these networks")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        name, side, steps = arguments.measure
        print(json.dumps(measure(name, side, int(steps))))
        return
    report = {}
    print(f"{'ms of CPU a step':24}{'':8}{'eager':>10}{'fedser':>10}{'bf16':>10}   fedser / eager, bf16 / eager")
    for name in arguments.only:
        steps = arguments.steps if name in ("cnn4", "statcnn") else max(arguments.steps // 10, 3)
        turns = [{side: process(name, side, steps) for side in SIDES} for _ in range(arguments.repeats)]
        assert len({turn[side]["loss"] for turn in turns for side in ("eager", "fedser")}) == 1, "the sides differ"
        for part in ("train", "attack"):
            each = {side: statistics.median(second for turn in turns for second in turn[side][part]) for side in SIDES}
            ratios = [each[side] / each["eager"] for side in SIDES[1:]]
            report[f"{name}, {part}"] = each | dict(zip(("fp32 ratio", "bf16 ratio"), ratios, strict=True))
            shown = "".join(f"{1000 * each[side]:10.1f}" for side in SIDES)
            print(f"{name:24}{part:8}{shown}   {ratios[0]:.2f}, {ratios[1]:.2f}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
