"""A probe of one client: peak memory and seconds per sample, measured in a fresh process before a run starts.

`probe` starts that process (`python -m fedser.simulation.probe`, JSON in and out) and keeps its answer in the cache, so
that only the first run of a configuration waits for it. The driver itself never starts CUDA.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedser import __version__
from fedser.attacks import CPU_CHUNK, undisturbed
from fedser.attacks.waveform import Listening
from fedser.config import identity
from fedser.config.components import Component, build
from fedser.config.settings import Settings
from fedser.defences import inference
from fedser.evaluation.measure import predict
from fedser.features.front_end import LogMel, fitted, on_waveforms
from fedser.features.normalisation import Sums, zscore
from fedser.models.lengths import as_inputs, logits
from fedser.models.weights import trained
from fedser.runs import cache
from fedser.simulation.resources import cards, cores, own_peak, processor
from fedser.training.local import train
from fedser.training.objective import CrossEntropy, Samples

if TYPE_CHECKING:
    from fedser.data.partition import ClientSplit  # and pandas, which the new process has no use for

log = logging.getLogger(__name__)
PATIENCE = 300  # seconds; a probe that takes longer is given up
QUICK = 0.5  # seconds; what takes less does not take long
LONG = 5.0  # seconds; what takes less is measured once more, warm: the first time kernels are compiled and tried
FEW = 2  # samples attacked for the time where more take long
LATE = 10**6  # a round in which every objective does all that it ever does
# A worker has beyond the probe's memory: Ray, Flower, the corpus's table, and what remains from client to client.
WORKER_BYTES, REMAINS = 150 * 2**20, 1.15
CONTEXT_BYTES = 2**30  # at most, of a CUDA context


@dataclass(frozen=True)
class Probe:
    """The resources that one client takes.

    `peak_bytes` is a worker's own memory at its peak, without the libraries and features that all of them share.
    `gpu_peak_bytes` are of a card of `gpu_bytes`, the CUDA context included; 0 on a CPU. The seconds are those of one
    client alone with its `client.threads`; the start of a round is the objective's: attacks on half the samples, say.
    """

    device: str
    peak_bytes: int
    seconds_per_training_sample: float
    seconds_to_start_per_sample: float
    gpu_peak_bytes: int = 0
    gpu_bytes: int = 0


def probe(
    settings: Settings,
    classes: int,
    splits: Sequence["ClientSplit"],
    attacks: dict[str, Component],
    shape: tuple[int, ...],
) -> Probe | None:
    """The resources that the largest of the clients takes, measured now or by an earlier run.

    `classes` is how many there are, `attacks` those of the evaluation, `shape` is a clip's. None where
    the settings want no probe, and, with a warning that says why, where it failed.
    """
    if not settings.simulation.probe or settings.simulation.backend == "serial":
        return None
    component, client, defence = settings.model.component, settings.client, settings.defence
    job = {
        "model": component.node,
        "client": client.model_dump(include={"threads", "batch_size", "precision"}),
        "optimizer": client.optimizer.node,
        "training": defence.training.node if defence.training else None,
        "front_end": None if settings.features.ragged else settings.features.front_end,
        "inference": defence.inference.node if defence.inference else None,
        "shape": list(shape),
        "mu": settings.strategy.component.get("proximal_mu") or 0.0,
        "device": settings.simulation.device,
        "classes": classes,
        "attacks": [attack.node for attack in attacks.values()],
        "trained": max(len(split.train) for split in splits),
        "tested": max(max(len(split.test), len(split.validation)) for split in splits),
        "tested_at_a_time": settings.evaluation.batch_size,
    }
    here = {"version": __version__, "torch": torch.__version__, "machine": [processor(), cores(), *cards()]}
    target = cache.folder("probes", identity.digest(job | here))
    with contextlib.suppress(OSError):
        return Probe(**json.loads((target / "probe.json").read_text()))
    try:
        found = _measured_apart(job)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        log.warning("what a client takes was not measured, so cores alone decide how many run at a time: %s", error)
        return None
    with contextlib.suppress(OSError), cache.publish(target) as folder:  # not written, it is measured again next time
        (folder / "probe.json").write_text(json.dumps(asdict(found)))
    return found


def _measured_apart(job: dict) -> Probe:
    """Runs `main` in a process of its own. Raises RuntimeError with its last words."""
    done = subprocess.run(
        [sys.executable, "-m", "fedser.simulation.probe"],
        input=json.dumps(job),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    if done.returncode == -signal.SIGKILL:
        raise RuntimeError("the process was killed, as happens when memory runs out")
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {' '.join(done.stderr.splitlines()[-1:])}")
    return Probe(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Reads a job from stdin, does it and prints the Probe's fields; JSON both."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # where memory runs out, this process goes and no other
    print(json.dumps(asdict(measure(json.load(sys.stdin)))))


def measure(job: dict) -> Probe:
    """Does, on random inputs, whatever takes the largest client memory or time."""
    client = _Client(job)
    training, starting = client.train(job["trained"])
    client.evaluate(job["tested"])
    gpu = client.gpu() if client.device.type == "cuda" else (0, 0)
    return Probe(client.device.type, int(REMAINS * own_peak()) + WORKER_BYTES, training, starting, *gpu)


class _Client:
    """A client as a worker holds it."""

    def __init__(self, job: dict):
        self.job, self.client = job, job["client"]
        torch.set_num_threads(self.client["threads"])
        self.device = torch.device("cuda" if job["device"] != "cpu" and torch.cuda.is_available() else "cpu")
        self.model = build(job["model"], key="model", classes=job["classes"]).to(self.device)
        self.adversaries = [build(attack, key="attack") for attack in job["attacks"]]
        self.objective = build(job["training"], key="defence.training") if job["training"] else CrossEntropy()
        self.trained, self.shape = self.model, job["shape"]
        if on_waveforms(self.objective) and job["front_end"]:
            self.trained, self.shape = self._listening(dict(job["front_end"]))

    def _listening(self, features: dict) -> tuple[Listening, list[int]]:
        """The model behind its front end, and clips as long as this hears, as an attack in training has them."""
        frames = features.pop("frames")
        front = LogMel(**features).to(self.device)

        def heard(x: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            made, real = fitted(front, frames, x[:, 0, :, 0], lengths)
            return as_inputs(made), real

        return Listening(self.model, heard), [features["window"] + (frames - 1) * features["hop"], 1]

    def train(self, count: int) -> tuple[float, float]:
        """One training step → seconds per sample trained on, and per sample of the objective's start of a round."""
        samples = self._samples(count, self.shape)
        few = samples[torch.arange(min(count, 2 * CPU_CHUNK if self.device.type == "cpu" else count))]
        starting = self._seconds(lambda: self._start(few[torch.arange(min(count, 2 * FEW))])) / min(count, 2 * FEW)
        if starting * len(few) < QUICK:
            starting = self._seconds(lambda: self._start(few)) / len(few)
        samples = self._start(samples) if starting * count < QUICK else samples
        optimizer = build(self.job["optimizer"], trained(self.model), key="client.optimizer")
        batch = samples[torch.arange(min(self.client["batch_size"], len(samples)))]
        options = {key: self.client[key] for key in ("batch_size", "precision")} | {"mu": self.job["mu"]}
        step = lambda: train(self.trained, optimizer, batch, self.objective, round=LATE, epochs=1, seed=0, **options)  # noqa: E731
        return self._seconds(step) / len(batch), starting

    def evaluate(self, count: int) -> None:
        """Classifies and attacks as many samples at a time as the evaluation does."""
        size, samples = self.job["tested_at_a_time"], self._samples(count, self.job["shape"])
        x, lengths = samples.x, samples.lengths
        made = [x.clone() for _ in self.adversaries]
        if self.job["inference"] is not None:
            x, lengths = inference.apply(build(self.job["inference"], key="defence.inference"), x, lengths)
        predict(self.model, x, size, lengths)
        if made:
            self._gradient(samples[torch.arange(min(size, CPU_CHUNK if self.device.type == "cpu" else size, count))])

    def gpu(self) -> tuple[int, int]:
        """The most bytes held on the card, and the card's."""
        free, total = torch.cuda.mem_get_info()
        # What is in use beside our tensors: the context, and whatever other processes have there.
        context = min(total - free - torch.cuda.memory_reserved(), CONTEXT_BYTES)
        return torch.cuda.max_memory_reserved() + context, total

    def _samples(self, count: int, shape: Sequence[int]) -> Samples:
        """Samples made as a client makes them, since the steps in between take memory."""
        few = np.random.default_rng(0).standard_normal((min(count, 64), *shape), dtype=np.float32)
        frames = few[np.arange(count) % len(few)]
        x = as_inputs(torch.from_numpy(zscore(Sums.of(frames))(frames))).to(self.device)
        return Samples.of(x, torch.arange(count, device=self.device) % self.job["classes"])

    def _start(self, samples: Samples) -> Samples:
        return self.objective.start_round(self.trained, samples, round=LATE, seed=0)

    def _gradient(self, samples: Samples) -> None:
        """One gradient with respect to the inputs; an attack takes one or many."""
        with undisturbed(self.model, self.device, seed=0):
            x = samples.x.detach().requires_grad_()
            torch.autograd.grad(logits(self.model, x, samples.lengths).sum(), x)

    def _seconds(self, work: Callable[[], object]) -> float:
        """The seconds that the work takes, warm unless that would be long."""
        for _ in range(2):
            began = time.perf_counter()
            work()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            if (took := time.perf_counter() - began) > LONG:
                break
        return took


if __name__ == "__main__":
    main()
