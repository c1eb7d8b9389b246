"""What it costs to keep waveforms and hidden states, to train on them, and to augment waveforms.

    python benchmarks/waveforms.py --root DIR [--dataset emodb] [--backbone whisper_tiny] [--rounds 4] [--json PATH]
    python benchmarks/waveforms.py --root DIR --only attacks

CPU, one thread; the sides take turns, medians are shown.
- reading: every clip out of the ragged store, and decoded again. Goal: at least 5 × faster.
- states: a round of all clients on the kept states of a frozen backbone (random weights: of its size), and the same
  steps of the same network on states in memory in a bare loop, the head alone. Goal: at most 1.2 ×.
- attacks: PGD of ten steps through the front end (snr_pgd), and on the log-Mels of the same clips (pgd_strong), CPU
  time. Goal: at most 1.3 ×.
- augmentation: a round of the default network with noise or speed on the waveform, and without. Goal: at most 1.5 ×.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch.nn import functional

import fedser
from fedser.attacks.waveform import Listening
from fedser.config.compose import compose
from fedser.config.validation import validate
from fedser.data.store import FeatureStore
from fedser.features import audio
from fedser.features.front_end import fitted, log_mel
from fedser.models.lengths import as_inputs, logits
from fedser.models.weights import trained
from fedser.preparation import prepare

COMMON = ["simulation=serial", "logger=none", "defence=none", "attack=none", "evaluation.every=null", "reuse=false"]
COMMON += ["strategy.fraction_train=1"]


def reading(store: FeatureStore) -> tuple[float, float]:
    """Seconds for all clips: from the store, and decoded."""
    began = time.perf_counter()
    for row in range(len(store)):
        store.take([row])
    between = time.perf_counter()
    for path in store.table["path"]:
        audio.read(path, 16000)
    return between - began, time.perf_counter() - between


def seconds_per_round(overrides: list[str]) -> float:
    """Of a training of its own: the median of all rounds but the first, clients alone."""
    with tempfile.TemporaryDirectory() as folder:
        summary = fedser.run(compose([*COMMON, *overrides]), Path(folder) / "run").metrics
    return statistics.median(summary["train_seconds"][1:])


def bare(overrides: list[str], rounds: int) -> float:
    """The same steps on states in memory, by themselves."""
    prepared = prepare(validate(compose([*COMMON, *overrides])))
    client, states, model = prepared.settings.client, prepared.forms["states"], prepared.model.train()
    rows = [split.train for split in prepared.splits]
    lengths, labels = torch.tensor(states.lengths), torch.tensor(states.labels)
    clients = [(as_inputs(states.take(each)), lengths[each], labels[each]) for each in rows]
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        for x, lengths, y in clients:
            optimizer = client.build_optimizer(trained(model))
            for rows in torch.randperm(len(x)).split(client.batch_size):
                optimizer.zero_grad()
                longest = int(lengths[rows].max())
                functional.cross_entropy(model(x[:, :, :longest][rows], lengths[rows]), y[rows]).backward()
                optimizer.step()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def attacks(overrides: list[str], name: str, clips: int, repeats: int) -> tuple[float, float]:
    """CPU seconds of PGD on the waveforms of so many clips, and on their log-Mels: the same network, in turns."""
    settings = validate(compose([*COMMON, *overrides, f"model={name}", "evaluation.attacks=[snr_pgd,pgd_strong]"]))
    prepared = prepare(settings)
    rows = torch.linspace(0, len(prepared.store) - 1, clips).long().numpy()
    network, front = prepared.model.eval(), log_mel(settings.features)
    waveforms = prepared.forms["waveforms"]
    spoken, samples = as_inputs(waveforms.take(rows)), torch.tensor(waveforms.lengths[rows])
    mean, deviation = prepared.store.take(rows).mean((0, 1)), prepared.store.take(rows).std((0, 1))

    def heard(x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        made, real = fitted(front, settings.features.frames, x[:, 0, :, 0], lengths)
        return as_inputs((made - mean) / deviation), real

    with torch.no_grad():
        x, real = heard(spoken, samples)
        y = logits(network, x, real).argmax(1)
    through, direct = (prepared.protocols.attacks[each].build() for each in ("snr_pgd", "pgd_strong"))
    work = {
        "waveform": lambda: through(Listening(network, heard), spoken, y, 0, lengths=samples),
        "log-Mel": lambda: direct(network, x, y, 0, lengths=real),
    }
    seconds = {side: [] for side in work}
    for _ in range(repeats):
        for side, attack in work.items():
            began = time.process_time()
            attack()
            seconds[side].append(time.process_time() - began)
    return tuple(statistics.median(each) for each in seconds.values())


def compared(corpus: list[str], arguments: argparse.Namespace) -> None:
    """Prints both networks' attacks."""
    for name, clips in (("statcnn", 32), ("cnn4", 8)):
        through, direct = attacks(corpus, name, clips, arguments.repeats)
        print(
            f"{name:10} {clips} clips: waveform {through:.2f} s, log-Mel {direct:.2f} s, ratio {through / direct:.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True)
    parser.add_argument("--dataset", default="emodb")
    parser.add_argument("--backbone", default="whisper_tiny")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=["attacks"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    corpus = [f"dataset={arguments.dataset}", f"dataset.root={arguments.root}", f"rounds={arguments.rounds}"]
    compared(corpus, arguments)
    if arguments.only:
        return
    kept = [*corpus, "features=waveform", "features.cache=states", "model=ssl", f"model.backbone={arguments.backbone}"]
    kept += ["augment=[]", "client.optimizer_state=reset"]
    store = prepare(validate(compose([*COMMON, *kept]))).store
    read = [reading(store) for _ in range(arguments.repeats)]
    sides = {
        "states, fedser": lambda: seconds_per_round(kept),
        "states, head alone": lambda: bare(kept, arguments.rounds),
        "log-Mels": lambda: seconds_per_round(corpus),
        "log-Mels, noise": lambda: seconds_per_round([*corpus, "augment=[waveform_noise,crop,mask,gain]"]),
        "log-Mels, speed": lambda: seconds_per_round([*corpus, "augment=[speed,crop,mask,gain]"]),
    }
    times = {name: [] for name in sides}
    for _ in range(arguments.repeats):
        for name, work in sides.items():
            times[name].append(work())
    found = {name: statistics.median(values) for name, values in times.items()}
    found["reading"], found["decoding"] = (statistics.median(side) for side in zip(*read, strict=True))
    ratios = {
        "decoding / reading": found["decoding"] / found["reading"],
        "states: fedser / head alone": found["states, fedser"] / found["states, head alone"],
        "noise / none": found["log-Mels, noise"] / found["log-Mels"],
        "speed / none": found["log-Mels, speed"] / found["log-Mels"],
    }
    for name, value in {**{f"{name} (s)": value for name, value in found.items()}, **ratios}.items():
        print(f"{name:32} {value:8.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"seconds": times, "ratios": ratios}, indent=1))


if __name__ == "__main__":
    main()
