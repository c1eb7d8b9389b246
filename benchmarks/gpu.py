"""Training steps per second of VGG-15 rounds on a GPU, shared by 1 to 16 actors, against one eager process.

    python benchmarks/gpu.py [--json PATH] [--actors 1 2 4 8 16] [--rounds 3] [client.precision=bf16 client.tf32=true …]

The paper's training (`experiment=chang2022`) on synthetic speech of 373 frames, no attacks, no evaluation. The
bare loop trains one batch after the other in this process. From the best number of actors follows the time of the
paper's 300 rounds on DEMoS (7,491 clips to train on) and what it would be at `--tflops`, the card's limit: 97 PFLOP.
`--cpu` tries the script without a GPU, with a small model.

    python benchmarks/gpu.py [model=cnn4 model.width=8 …] --stacked 2 4 8 16

Instead: steps per second of so many clients in one process, one after the other and side by side
(`simulation.stacked`), in turn; clients have different numbers of clips.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import fedser
from fedser.config.validation import validate
from fedser.models.weights import trained
from fedser.training import local, stacked
from fedser.training.objective import CrossEntropy, Samples

DEMOS_CLIPS, PAPER_ROUNDS, PAPER_PFLOP = 7491, 300, 97


def overrides(arguments):
    model = ["model=cnn4", "model.width=2"] if arguments.cpu else []
    return [
        "experiment=chang2022", "dataset=synthetic", *model, "features.frames=373", "attack=none", "defence=none",
        "evaluation.attacks=[]", "evaluation.every=1000000", "logger=none", "reuse=false", "resume=false",
        "checkpoint.every=null", *arguments.settings,
    ]  # fmt: skip


def federated(actors, arguments, folder):
    """(samples per second, seconds per round) of fedser's rounds after the first."""
    where = ["simulation=cpu"] if arguments.cpu else ["simulation=gpu", f"simulation.num_gpus={1 / actors:.4f}"]
    more = [*where, f"simulation.actors={actors}", "simulation.num_cpus=0.5", f"rounds={arguments.rounds}"]
    result = fedser.run(fedser.compose([*overrides(arguments), *more]), folder / f"actors-{actors}")
    seconds = statistics.median(result.metrics["train_seconds"][1:])
    clips = 0.8 * result.metrics["utterances"]  # the rest is for testing
    return clips / seconds, seconds


def bare(arguments, batches=60):
    """Samples per second of one eager process that trains batch after batch."""
    settings = validate(fedser.compose(overrides(arguments)))
    device = torch.device("cpu" if arguments.cpu else "cuda")
    client = settings.client
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = client.tf32
    model = settings.model.component.build(classes=7).to(device).train()
    optimizer = client.build_optimizer(model.parameters())
    x = torch.randn(client.batch_size, 1, 373, 64, device=device)
    y = torch.arange(len(x), device=device) % 7
    for number in range(batches + 10):
        if number == 10:  # warm
            torch.cuda.synchronize() if device.type == "cuda" else None
            start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=client.precision == "bf16"):
            loss = F.cross_entropy(model(x).float(), y)
        loss.backward()
        optimizer.step()
    torch.cuda.synchronize() if device.type == "cuda" else None
    return batches * len(x) / (time.perf_counter() - start)


def side_by_side(count, arguments, batches=8, repeats=5):
    """Steps per second of `count` clients: one after the other, and as one stack; medians."""
    settings = validate(fedser.compose(overrides(arguments)))
    device, client = torch.device("cpu" if arguments.cpu else "cuda"), settings.client
    torch.set_num_threads(client.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = client.tf32
    model = settings.model.component.build(classes=7).to(device)
    sizes = [batches * client.batch_size + number % client.batch_size for number in reversed(range(count))]
    draws = torch.Generator().manual_seed(0)
    inputs = [torch.randn(size, 1, 373, 64, generator=draws).to(device) for size in sizes]
    samples = [Samples.of(x, torch.arange(len(x), device=device) % 7) for x in inputs]
    options = {"round": 1, "epochs": 1, "batch_size": client.batch_size, "precision": client.precision}
    if reason := stacked.why_not(model, CrossEntropy(), samples[0], client.precision, client.batch_size):
        raise SystemExit(f"--stacked: {reason}")
    weights = stacked.weights_of(model)

    def alone():
        for seed, own in enumerate(samples):
            local.train(
                model, client.build_optimizer(trained(model)), own, CrossEntropy(), mu=0.0, seed=seed, **options
            )

    def together():
        stack = stacked.Stack(model, [weights] * count)
        optimizers = list(map(client.build_optimizer, stack.parameters))
        more = {"mu": [0.0] * count, "seeds": range(count)}
        stacked.train(stack, optimizers, samples, CrossEntropy(), **more, **options)

    seconds = {alone: [], together: []}
    for _ in range(repeats + 1):
        for work, found in seconds.items():
            start = time.perf_counter()
            work()
            torch.cuda.synchronize() if device.type == "cuda" else None
            found.append(time.perf_counter() - start)
    steps = sum(-(-size // client.batch_size) for size in sizes)
    return [steps / statistics.median(found[1:]) for found in seconds.values()]  # the first warms up


def compare_stacked(arguments):
    """Prints, and writes where it is asked to, the figures of `--stacked`."""
    rows = []
    print(f"{'clients':>8}{'one by one':>14}{'side by side':>14}   steps/s")
    for count in arguments.stacked:
        alone, together = side_by_side(count, arguments)
        rows.append({"clients": count, "alone_steps_per_second": alone, "stacked_steps_per_second": together})
        print(f"{count:8d}{alone:14.1f}{together:14.1f}   {together / alone:.2f} ×", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"stacked": rows}, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--stacked", type=int, nargs="+", help="clients trained side by side, in place of all else")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tflops", type=float, default=67.0, help="the card's peak: H200 67 in fp32, 494 in TF32")
    parser.add_argument("--cpu", action="store_true", help="try the script on a small model without a GPU")
    parser.add_argument("settings", nargs="*", help="overrides for both sides, e.g. client.precision=bf16")
    arguments = parser.parse_args()
    if arguments.stacked:
        return compare_stacked(arguments)

    size = 8
    alone = bare(arguments) / size
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for actors in arguments.actors:
            samples, seconds = federated(actors, arguments, Path(folder))
            rows.append({"actors": actors, "steps_per_second": samples / size, "seconds_per_round": seconds})
    print(f"\n{'':14}{'steps/s':>10}{'s a round':>12}")
    print(f"{'one process':14}{alone:10.1f}")
    for row in rows:
        print(f"{row['actors']:3d} actors    {row['steps_per_second']:10.1f}{row['seconds_per_round']:12.2f}")
    best = max(row["steps_per_second"] for row in rows)
    hours = PAPER_ROUNDS * DEMOS_CLIPS / (best * size) / 3600
    limit = PAPER_PFLOP * 1e15 / (arguments.tflops * 1e12) / 3600
    print(f"\nthe paper's nature run, {PAPER_ROUNDS} rounds: {hours:.2f} h")
    print(f"its limit, {PAPER_PFLOP} PFLOP at {arguments.tflops:g} TFLOP/s: {limit:.2f} h")
    if arguments.json:
        report = {"bare_steps_per_second": alone, "rows": rows, "projected_hours": hours, "limit_hours": limit}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
