"""What the federation costs: a training round by fedser on Ray against a bare PyTorch loop over the same clients.

    python benchmarks/round.py [--json PATH] [--rounds 5] [--repeats 3] [--width 8]

CNN-4 on the synthetic corpus, 68 clients, FGSM adversarial training from round 2 on, on two cores. The bare loop has
every advantage: the clients' tensors lie in memory, normalised; nothing is sent, checked or kept; the labels that FGSM
leads away from come out of the forward pass that its gradient needs anyway. It runs in two ways, and the faster one
counts: one process with two threads, and two processes with one thread each, the clients dealt longest first to the
process with less to do, one average of the models at the end. fedser runs two clients at a time, one thread each.

Seconds are medians over rounds 2 to the last, by the clock: messages and aggregation included, evaluation and the
start of processes not. The sides take turns, `--repeats` times. Both draw the same halves and batches from the same
seed, so that their losses agree up to rounding: printed as a check that they do the same work. Wants the machine to
itself: beside another program the threads of the first way wait for each other, and a round takes ten times as long.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import fedser
from fedser.config.validation import validate
from fedser.data import corpora
from fedser.data.partition import partition
from fedser.data.store import extract
from fedser.features.normalisation import Sums, zscore
from fedser.models.cnn4 import CNN4
from fedser.randomness import derive, generator

CORES = 2
OVERRIDES = [
    "dataset=synthetic",
    "model=cnn4",
    "attack=fgsm",
    "defence=adversarial",
    "simulation=cpu",
    f"simulation.actors={CORES}",
    "evaluation.attacks=[]",
    "evaluation.every=1000000",
    "logger=none",
    "reuse=false",
    "resume=false",
]
VARIANTS = {  # threads per process, one entry per process
    "bare_one_process_two_threads": [2],
    "bare_two_processes": [1, 1],
}


def run_fedser(folder, overrides):
    """(seconds per round, losses per round) of one run by fedser, which prints nothing."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        result = fedser.run(fedser.compose(overrides), folder)
    return result.metrics["train_seconds"], [row["train/loss"] for row in result.history]


def clients(settings):
    """[(name, x [n, 1, frames, mels] normalised, y [n])] of every client's training set, as fedser has it."""
    corpus = corpora.load(settings.dataset)
    store = extract(corpus, settings.features, settings.dataset.on_bad_audio)
    splits = partition(store.table, settings.partition, settings.seed)
    sums = [Sums.of(store.frames[split.train]) for split in splits]
    normalise = zscore(sum(sums[1:], sums[0]))
    labels = store.table["label"].to_numpy().astype(np.int64)
    data = []
    for split in splits:
        x = torch.from_numpy(normalise(store.frames[split.train])).unsqueeze(1)
        data.append((split.name, x, torch.from_numpy(labels[split.train])))
    return data


def network(settings):
    """CNN-4 with the weights that fedser's run starts from."""
    torch.manual_seed(derive(settings.seed, "initial weights"))
    options = {key: value for key, value in settings.model.component.options.items() if key != "name"}
    return CNN4(len(settings.dataset.classes), **options)


def state(model):
    """The tensors that are averaged: parameters and running statistics, without batch norm's counters."""
    return [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]


def check(settings):
    """The bare loop knows no other settings than these."""
    client, defence, attack = settings.client, settings.defence.training, settings.attack
    assert client.optimizer.target == "torch.optim.Adam" and client.optimizer_state == "reset"
    assert client.precision == "fp32" and client.attack_precision == "fp32" and client.threads == 1
    assert defence.get("attack") == attack.node and defence.get("pairing") == "disjoint"
    assert defence.get("alpha") == 0.5 and defence.get("start_round") == 2
    assert attack.name == "fgsm" and attack.get("labels") == "predicted" and attack.get("box") is None
    assert settings.features.normalisation.name == "zscore_global" and settings.strategy.name == "fedavg"


def fgsm(model, x, eps):
    """One step of eps per cell along the sign of the gradient, away from the predicted labels."""
    model.eval()
    x = x.clone().requires_grad_()
    logits = model(x)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, logits.detach().argmax(1)), x)
    return x.detach() + eps * gradient.sign()


def train_client(model, weights, name, x, y, round, settings):
    """One client's local training from the global weights, in place; the mean loss of its steps."""
    client, seed = settings.client, settings.seed
    with torch.no_grad():
        for tensor, new in zip(state(model), weights, strict=True):
            tensor.copy_(new)
    if round >= 2:
        order = torch.randperm(len(x), generator=generator(derive(seed, "defence", round, name), "halves", round))
        half = (len(x) + 1) // 2
        x = torch.cat([x[order[:half]], fgsm(model, x[order[half:]], settings.attack.get("eps"))])
        y = y[order]
    options = {key: value for key, value in client.optimizer.options.items() if key != "name"}
    optimizer = torch.optim.Adam(model.parameters(), **options)
    shuffle = derive(seed, "train", round, name)
    model.train()
    total = 0.0
    for epoch in range(client.epochs):
        order = torch.randperm(len(x), generator=generator(shuffle, "shuffle", epoch))
        for rows in order.split(client.batch_size):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
    return total / (client.epochs * len(x))


def process(pipe, threads, path):
    """One process of the bare loop: weights and round in, its clients' share of the average and of the loss out."""
    torch.set_num_threads(threads)
    settings, mine, everyone = torch.load(path, weights_only=False)
    model = network(settings)
    pipe.send("ready")
    while (task := pipe.recv()) is not None:
        round, weights = task[0], [torch.from_numpy(array) for array in task[1]]
        average, mean = [torch.zeros_like(tensor) for tensor in weights], 0.0
        for name, x, y in mine:
            loss = train_client(model, weights, name, x, y, round, settings)
            share = len(x) / everyone
            mean += share * loss
            for total, tensor in zip(average, state(model), strict=True):
                total.add_(tensor, alpha=share)
        pipe.send(([tensor.numpy() for tensor in average], mean))


def run_bare(settings, data, rounds, threads):
    """(seconds per round, losses per round) of the bare loop in len(threads) processes."""
    hands = [[] for _ in threads]
    for client in sorted(data, key=lambda client: -len(client[1])):
        min(hands, key=lambda hand: sum(len(x) for _, x, _ in hand)).append(client)
    everyone = sum(len(x) for _, x, _ in data)
    context = multiprocessing.get_context("spawn")
    pipes, workers, seconds, losses = [], [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        for number, (hand, count) in enumerate(zip(hands, threads, strict=True)):
            path = Path(scratch, f"{number}.pt")
            torch.save((settings, hand, everyone), path)
            here, there = context.Pipe()
            workers.append(context.Process(target=process, args=(there, count, path), daemon=True))
            workers[-1].start()
            there.close()  # so that `here` says at once when the worker has died
            pipes.append(here)
        for pipe in pipes:
            pipe.recv()
    weights = [tensor.numpy() for tensor in state(network(settings))]
    for round in range(1, rounds + 1):
        began = time.perf_counter()
        for pipe in pipes:
            pipe.send((round, weights))
        answers = [pipe.recv() for pipe in pipes]
        weights = [sum(parts) for parts in zip(*(arrays for arrays, _ in answers), strict=True)]
        seconds.append(time.perf_counter() - began)
        losses.append(sum(loss for _, loss in answers))
    for pipe, worker in zip(pipes, workers, strict=True):
        pipe.send(None)
        worker.join()
    return seconds, losses


def measure(rounds, repeats, width):
    """Per side: seconds of the rounds 2, 3, … of all repeats, and the losses of rounds 1, 2, … of the last."""
    overrides = [*OVERRIDES, f"model.width={width}"]
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["FEDSER_CACHE"] = str(Path(scratch, "cache"))
        run_fedser(Path(scratch, "first"), [*overrides, "rounds=1"])  # fills the cache with features
        settings = validate(fedser.compose(overrides))
        check(settings)
        data = clients(settings)
        sides = {"fedser": lambda folder: run_fedser(folder, [*overrides, f"rounds={rounds}"])}
        for name, threads in VARIANTS.items():
            sides[name] = lambda _, threads=threads: run_bare(settings, data, rounds, threads)
        seconds, losses = {name: [] for name in sides}, {}
        for repeat in range(repeats):
            for name, side in sides.items():
                figures, losses[name] = side(Path(scratch, f"{name}-{repeat}"))
                seconds[name] += figures[1:]
    return seconds, losses


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--rounds", type=int, default=5, help="of each run, at least 2; the first is not counted")
    parser.add_argument("--repeats", type=int, default=3, help="how often the sides take turns")
    parser.add_argument("--width", type=int, default=8, help="of CNN-4")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error("--rounds must be at least 2: round 1 is not adversarial")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])  # the sides differ in nothing but the engine

    seconds, losses = measure(arguments.rounds, arguments.repeats, arguments.width)
    medians = {name: statistics.median(figures) for name, figures in seconds.items()}
    bare = min(medians[name] for name in VARIANTS)
    report = {
        "fedser_seconds": medians["fedser"],
        "bare_seconds": bare,
        **{name: medians[name] for name in VARIANTS},
        "ratio": medians["fedser"] / bare,
        "loss_round_2": {name: figures[1] for name, figures in losses.items()},
        "rounds": seconds,
    }
    print(f"CNN-4 of width {arguments.width}, 68 clients, FGSM adversarial training, {CORES} cores\n")
    print(f"{'':30}{'s a round':>10}{'loss, round 2':>16}   by round")
    for name, figures in seconds.items():
        title = name.replace("bare_", "bare, ").replace("_", " ")
        shown = " ".join(f"{value:.2f}" for value in figures)
        print(f"{title:30}{medians[name]:9.2f}s{losses[name][1]:16.6f}   {shown}")
    print(f"\nfedser takes {report['ratio']:.2f} times as long as the faster bare loop (goal: 1.10)")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
