"""A federated round as a bare PyTorch loop over the clients, in one or more processes."""

import multiprocessing
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from peers.work import batches, network, optimizer_options

from fedser.federation import allocator
from fedser.randomness import derive, generator


def run(settings, data, rounds, threads, step):
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
            workers.append(context.Process(target=process, args=(there, count, path, step), daemon=True))
            workers[-1].start()
            there.close()  # so that `here` says at once when the worker has died
            pipes.append(here)
        for pipe in pipes:
            pipe.recv()
    weights = [tensor.numpy() for tensor in state(network(settings, step))]
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


def process(pipe, threads, path, step):
    """One process of the bare loop: weights and round in, its clients' share of the average and of the loss out."""
    torch.set_num_threads(threads)
    settings, mine, everyone = torch.load(path, weights_only=False)
    if step == "fedser":
        allocator.keep_memory()
    model = network(settings, step)
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


def state(model):
    """The tensors that are averaged: parameters and running statistics, without batch norm's counters."""
    return [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]


def train_client(model, weights, name, x, y, round, settings):
    """One client's local training from the global weights, in place; the mean loss of its steps."""
    client, seed = settings.client, settings.seed
    with torch.no_grad():
        for tensor, new in zip(state(model), weights, strict=True):
            tensor.copy_(new)
    if settings.defence.training is not None and round >= 2:
        order = torch.randperm(len(x), generator=generator(derive(seed, "defence", round, name), "halves", round))
        half = (len(x) + 1) // 2
        x = torch.cat([x[order[:half]], fgsm(model, x[order[half:]], settings.attack.get("eps"))])
        y = y[order]
    optimizer = torch.optim.Adam(model.parameters(), **optimizer_options(settings))
    model.train()
    total = 0.0
    for epoch in range(client.epochs):
        for rows in batches(settings, round, name, epoch, len(x)):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
    return total / (client.epochs * len(x))


def fgsm(model, x, eps):
    """One step of eps per cell along the sign of the gradient, away from the predicted labels."""
    model.eval()
    x = x.clone().requires_grad_()
    logits = model(x)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, logits.detach().argmax(1)), x)
    return x.detach() + eps * gradient.sign()
