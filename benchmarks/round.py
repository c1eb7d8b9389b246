"""What the federation costs: a training round by fedser on Ray, against other ways to do the same work.

    python benchmarks/round.py [--json PATH] [--rounds 5] [--repeats 3] [--width 8] [--step eager|fedser]
    python benchmarks/round.py --defence none                     # nature: no adversarial training
    PYTHONPATH=DIR python benchmarks/round.py --peer pfl          # nature, against Apple's pfl
    PYTHONPATH=DIR python benchmarks/round.py --peer pfl bare --step eager --only fedser two_processes

CNN-4 on the synthetic corpus, 68 clients, on two cores; FGSM adversarial training from round 2 on, or nature; local
training as version 0.3.0 had it (`experiment=v03`). fedser runs two clients at a time, one thread each. Every other
side has every advantage: the clients' tensors lie in memory, normalised; nothing is checked or kept. It runs in two
ways, and the faster one counts: one process with two threads, and two processes with one thread each, the clients dealt
longest first to the process with less to do.

- The bare PyTorch loop: one average of the models at the end; the labels that FGSM leads away from come out of the
  forward pass that its gradient needs anyway. With `--step eager` its network is CNN-4 in plain eager PyTorch, and the
  ratio is the whole gain; with `--step fedser` fedser's own, in memory that is kept as clients keep it, and the ratio
  is what the engine costs. Both without.
- pfl 0.6, as `peers/pfl_worker.py` has it: with the eager network, on nature alone. It is no dependency of fedser's:
  `pip install --no-deps --target DIR pfl dp-accounting multiprocess prv-accountant dill attrs absl-py mpmath`.

Seconds are medians over rounds 2 to the last, by the clock: messages and aggregation included, evaluation and the
start of processes not. The sides take turns, `--repeats` times. All start from the same weights, and draw the same
halves and batches from the same seed, so that their losses agree up to rounding: printed as a check that they do the
same work. Wants the machine to itself: beside another program the threads of the first way wait for each other, and a
round takes ten times as long.
"""

import argparse
import contextlib
import functools
import io
import json
import os
import statistics
import tempfile
from pathlib import Path

from peers import bare, pfl_round, work

import fedser
from fedser.config.validation import validate

CORES = 2
OVERRIDES = [
    "experiment=v03",  # every client in every round: two epochs of batches of 8, Adam fresh, nothing augmented
    "dataset=synthetic",
    "simulation=cpu",
    f"simulation.actors={CORES}",
    "evaluation.attacks=[]",
    "evaluation.every=1000000",
    "logger=none",
    "reuse=false",
    "resume=false",
]
DEFENCES = {"adversarial": ["attack=fgsm", "defence=adversarial"], "none": ["attack=none", "defence=none"]}
TITLES = {"adversarial": "FGSM adversarial training", "none": "nature"}
STEPS = ["eager", "fedser"]
WAYS = {"one_process_two_threads": [2], "two_processes": [1, 1]}  # threads per process, one entry per process


def run_fedser(folder, overrides):
    """(seconds per round, losses per round) of one run by fedser, which prints nothing."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        result = fedser.run(fedser.compose(overrides), folder)
    return result.metrics["train_seconds"], [row["train/loss"] for row in result.history]


def others(settings, rounds, peers, steps):
    """{name of the side: a function that runs it} of all but fedser, as `peers` and `steps` choose."""
    data, sides = work.clients(settings), {}
    for way, threads in WAYS.items():
        for step in steps if "bare" in peers else []:
            sides[f"bare_{step}_{way}"] = functools.partial(bare.run, settings, data, rounds, threads, step)
        if "pfl" in peers:
            sides[f"pfl_{way}"] = functools.partial(pfl_round.run, settings, data, rounds, threads)
    return dict(sorted(sides.items()))


def measure(arguments):
    """Per side: seconds of the rounds 2, 3, … of all repeats, and the losses of rounds 1, 2, … of the last."""
    overrides = [*OVERRIDES, *DEFENCES[arguments.defence], f"model.width={arguments.width}", *arguments.overrides]
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["FEDSER_CACHE"] = str(Path(scratch, "cache"))
        run_fedser(Path(scratch, "first"), [*overrides, "rounds=1"])  # fills the cache with features
        settings = validate(fedser.compose(overrides))
        work.check(settings)
        sides = others(settings, arguments.rounds, arguments.peer, arguments.step)
        only = tuple(arguments.only)
        names = [name for name in ["fedser", *sides] if name.startswith(only) or name.endswith(only)]
        seconds, losses = {name: [] for name in names}, {}
        for repeat in range(arguments.repeats):
            for name in names:
                if name == "fedser":
                    folder = Path(scratch, f"{name}-{repeat}")
                    figures, losses[name] = run_fedser(folder, [*overrides, f"rounds={arguments.rounds}"])
                else:
                    figures, losses[name] = sides[name]()
                seconds[name] += figures[1:]
    return seconds, losses


def ratios(medians):
    """fedser's seconds over those of each other's faster way: {"bare_eager", "bare_fedser", "pfl"}, where measured."""
    best = {}
    for name, median in medians.items():
        other = next((name.removesuffix(f"_{way}") for way in WAYS if name.endswith(way)), None)
        if other and "fedser" in medians:
            best[other] = min(median, best.get(other, median))
    return {other: medians["fedser"] / median for other, median in best.items()}


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", metavar="override", help="of the configuration: features.frames=373")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--rounds", type=int, default=5, help="of each run, at least 2; the first is not counted")
    parser.add_argument("--repeats", type=int, default=3, help="how often the sides take turns")
    parser.add_argument("--width", type=int, default=8, help="of CNN-4")
    parser.add_argument(
        "--peer", nargs="+", choices=["bare", "pfl"], default=["bare"], help="whom to run beside fedser"
    )
    parser.add_argument("--step", nargs="+", choices=STEPS, default=STEPS, help="the bare loop's network")
    parser.add_argument("--defence", choices=list(DEFENCES), help="adversarial; none with --peer pfl")
    parser.add_argument("--only", nargs="+", default=[""], help="sides whose names begin or end so")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error("--rounds must be at least 2: the first round is not counted")
    arguments.defence = arguments.defence or ("none" if "pfl" in arguments.peer else "adversarial")
    if "pfl" in arguments.peer and arguments.defence != "none":
        parser.error("--peer pfl has --defence none alone: pfl has no adversarial training")
    if "pfl" in arguments.peer and not pfl_round.installed():
        parser.error(f"pfl is not installed: {pfl_round.INSTALL}")
    return arguments


def main():
    arguments = parse()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])  # the sides differ in nothing but the engine

    seconds, losses = measure(arguments)
    medians = {name: statistics.median(figures) for name, figures in seconds.items()}
    report = {
        "defence": arguments.defence,
        "medians": medians,
        "ratios": ratios(medians),
        "losses": losses,
        "rounds": seconds,
    }
    print(f"CNN-4 of width {arguments.width}, 68 clients, {TITLES[arguments.defence]}, {CORES} cores\n")
    print(f"{'':37}{'s a round':>10}{'loss, round 1':>16}{'round 2':>10}   by round")
    for name, figures in seconds.items():
        shown = " ".join(f"{value:.2f}" for value in figures)
        first, second = losses[name][:2]
        print(f"{name.replace('_', ' '):37}{medians[name]:9.2f}s{first:16.6f}{second:10.6f}   {shown}")
    print()
    for other, ratio in report["ratios"].items():
        print(f"fedser takes {ratio:.2f} times as long as {other.replace('_', ' ')} in its faster way")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
