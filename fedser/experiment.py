"""One run from configuration to result: the file to read first.

settings = settle(config)           checked plain values
corpus → features → shares          what the clients hold
train, or replay a trained model    the rounds
evaluate                            UAR per condition, every few rounds and at the end
record                              the run's folder, the dashboard, the box on the terminal
"""

import logging
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from fedser import __version__, corpora, evaluation, features, identity, trained
from fedser.config import build, evaluation_attacks, settle
from fedser.display import Display
from fedser.errors import FedserError, InputError, Interrupted, RunError
from fedser.federation import server_app, simulation, transport
from fedser.federation.client_app import app as client_app
from fedser.partition import Share, partition, warn_of_gaps
from fedser.randomness import derive
from fedser.tracking import RunFolder, disk_error, dumps

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What a run came to: `metrics` as in `summary.json`, `history` as in `history.jsonl` (UARs are fractions)."""

    folder: Path
    metrics: dict
    history: list[dict]


def run(config, folder=None) -> Result:
    """Runs one experiment and returns its result.

    `config` comes from `fedser.compose`; `folder` is the run's, by default `outputs/<name>` as on the command line. A
    run that has finished there already returns at once (unless `reuse=false`).
    Raises InputError before anything is started, RunError when the run fails, Interrupted on Ctrl-C.
    """
    settings = settle(config)
    name = identity.run_name(settings)
    place = RunFolder(Path(folder).expanduser() if folder is not None else Path("outputs") / name)
    with place.locked():
        experiment = Experiment(settings, place, name)
        experiment.check_folder()
        experiment.load()
        return experiment.finished_before() or experiment.run()


@dataclass
class Experiment:
    """One run under way."""

    settings: dict
    place: RunFolder
    name: str
    stop: threading.Event = field(default_factory=threading.Event)
    matrices: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)  # client → condition → confusion

    def check_folder(self) -> None:
        """Raises InputError when the folder holds another configuration's run."""
        self.identity = identity.digest(identity.everything(self.settings))
        self.earlier = self.place.summary()
        if self.earlier is not None and self.earlier.get("identity") != self.identity:
            raise InputError(
                f"{self.place.path} holds a run of another configuration (see its config.yaml): "
                "choose another hydra.run.dir=…, or move that folder away."
            )

    def finished_before(self) -> Result | None:
        """The result that is there already, of the same configuration and data."""
        earlier = self.earlier
        same = earlier is not None and earlier["status"] == "finished" and earlier.get("data") == self.store.folder.name
        if not same or not self.settings["reuse"]:
            return None
        Display().result(self.place.path, earlier, note="This run had finished before; reuse=false makes it again.")
        return Result(self.place.path, earlier, self.place.history())

    def load(self) -> None:
        """Everything that can go wrong before a run starts: data, features, shares, room on the machine."""
        settings = self.settings
        self.attacks = evaluation_attacks(settings)
        self.corpus = corpora.load(settings)
        self.store = features.extract(self.corpus, settings["features"], settings["dataset"]["on_bad_audio"])
        self.shares: list[Share] = partition(self.store.table, settings["partition"], settings["seed"])
        warn_of_gaps(self.store.table, self.shares, self.corpus.classes)
        self.plan = simulation.plan(settings, len(self.shares))
        self.model = self._initial_model()
        self._check_defences()
        self.model_key = identity.digest(identity.training(settings) | {"data": self.store.folder.name})

    def run(self) -> Result:
        """Trains or replays, evaluates, records. A failing run is marked so everywhere before its error goes on."""
        self.summary = {
            "status": "running",
            "name": self.name,
            "identity": self.identity,
            "data": self.store.folder.name,
            "version": __version__,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "clients": len(self.shares),
            "utterances": len(self.store),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "plan": str(self.plan),
        }
        self.place.claim(self.settings, self.summary)
        self.tracker = build(self.settings["logger"])
        self.display = Display()
        self.started = time.monotonic()
        try:
            self.tracker.start(self.name, self.settings, self.place.path)
            with self._stop_on_ctrl_c(), self.display.rounds(self.name, self.settings["rounds"], self.summary):
                self._federate()
            self._finish("finished")
        except OSError as error:
            self._finish("failed", error=str(error))
            raise disk_error(error, f"The run in {self.place.path}") from error
        except (Interrupted, KeyboardInterrupt) as error:
            done = len(self.place.history())
            self._finish("interrupted", error=f"stopped after round {done} of {self.settings['rounds']}")
            raise Interrupted(
                f"Stopped after round {done} of {self.settings['rounds']}; what there is stays in {self.place.path}. "
                "The same command starts this run again."
            ) from error
        except Exception as error:
            self._finish("failed", error=f"{type(error).__name__}: {error}")
            raise error if isinstance(error, FedserError) else RunError(f"{type(error).__name__}: {error}") from error
        self.display.result(self.place.path, self.summary)
        return Result(self.place.path, self.place.summary(), self.place.history())

    def _federate(self) -> None:
        due = [round for round in range(1, self.settings["rounds"] + 1) if self._due(round)]
        known = trained.Trained.find(self.model_key, due) if self.settings["reuse"] else None
        self.summary["reused"] = known is not None
        if known:
            log.info("the model was trained before: %s", known.folder)
        kept = None if known else trained.Recording(self.model_key)
        try:
            simulation.simulate(
                lambda grid: self._serve(grid, known, kept), client_app, len(self.shares), self.plan, self.stop
            )
        finally:
            if kept:
                kept.discard()

    def _serve(self, grid, known: trained.Trained | None, kept: trained.Recording | None) -> None:
        """The server's work behind the grid: the rounds, each evaluated when it is due and then recorded."""
        settings = self.settings
        federation = server_app.Federation(
            grid, len(self.shares), self._told(), self.stop, settings["simulation"]["min_reply_fraction"]
        )
        federation.introduce()
        began = time.monotonic()
        for round, weights, row in known.replay() if known else self._train(federation):
            due = self._due(round)
            if kept:
                kept.add(round, weights if due else None, row)
                if round == settings["rounds"]:
                    kept.publish()  # before the last evaluation: should that fail, the training is not lost
            if due:
                self.matrices, missing = federation.evaluate(round, weights)
                row = row | self._metrics(recall=False) | ({"evaluate/missing": missing} if missing else {})
            self.place.append(row)
            self.tracker.log(row)
            self.display.round(row)
            self.weights = weights
        self.summary["seconds_per_round"] = float(f"{(time.monotonic() - began) / settings['rounds']:.3g}")

    def _train(self, federation) -> Iterator[tuple[int, dict, dict]]:
        strategy = server_app.build_strategy(self.settings, len(self.shares))
        return server_app.train_rounds(federation, strategy, transport.pack(self.model), self.settings)

    def _due(self, round: int) -> bool:
        return round % self.settings["evaluation"]["every"] == 0 or round == self.settings["rounds"]

    def _told(self) -> dict:
        """What the server tells every client about the experiment: plain values, no data."""
        return {
            "settings": self.settings,
            "classes": self.corpus.classes,
            "attacks": self.attacks,
            "store": str(self.store.folder),
            "state": str(self.place.path.absolute() / "state"),
        }

    def _metrics(self, recall: bool) -> dict[str, float]:
        """UAR and accuracy per condition (and the recall per class), from the clients' matrices added up."""
        metrics = {}
        for condition, matrix in self._pooled().items():
            metrics[f"uar/{condition}"] = evaluation.uar(matrix)
            metrics[f"accuracy/{condition}"] = evaluation.accuracy(matrix)
            if recall:
                for emotion, value in zip(self.corpus.classes, evaluation.recalls(matrix), strict=True):
                    metrics[f"recall/{condition}/{emotion}"] = float(value)
        return metrics

    def _pooled(self) -> dict[str, np.ndarray]:
        names = evaluation.conditions(self.attacks, self.settings["defence"]["inference"] is not None)
        if not self.matrices:
            return {}
        return {name: sum(client[name] for client in self.matrices.values()) for name in names}

    def _finish(self, status: str, error: str | None = None) -> None:
        """Writes the run's last files and closes the dashboard, whatever the status."""
        pooled = self._pooled()
        self.summary |= {"status": status, "seconds": round(time.monotonic() - self.started, 2)}
        self.summary |= {"rounds": len(self.place.history())} | self._metrics(recall=True)
        if error:
            self.summary["error"] = error
        if status == "finished":
            shutil.rmtree(self.place.path / "state", ignore_errors=True)  # the clients' moments: of no more use
        try:
            if status == "finished":
                trained.save_weights(self.weights, self.place.path / "model.safetensors")
            if pooled:
                confusion = {"classes": self.corpus.classes, "rounds": self.summary["rounds"]}
                confusion |= {"conditions": pooled, "clients": self.matrices}
                self.place.write("confusion.json", dumps(confusion))
            self.place.write("summary.json", dumps(self.summary, indent=2))
        except OSError as problem:
            # A full disk must not hide why the run failed; a finished run must not claim to be whole.
            if status == "finished":
                raise
            log.error("the run's last files could not be written: %s", problem)
        self.tracker.finish(self.summary, pooled, self.corpus.classes)

    def _initial_model(self) -> torch.nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(self.settings["seed"], "initial weights"))
            return build(self.settings["model"]["module"], classes=len(self.corpus.classes))

    def _check_defences(self) -> None:
        """What a client would stumble over in the first round, or only after the training, fails before it."""
        for attack in self.attacks.values():
            build(attack)
        build(self.settings["defence"]["training"])
        build(self.settings["client"]["optimizer"])(self.model.parameters())
        server_app.build_strategy(self.settings, len(self.shares))
        if (randomise := build(self.settings["defence"]["inference"])) is not None:
            randomise(torch.zeros(1, 1, self.settings["features"]["frames"], self.settings["features"]["mels"]))

    @contextmanager
    def _stop_on_ctrl_c(self):
        """The first Ctrl-C lets the clients that are at work finish; the second one ends them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(signum, frame):
            self.stop.set()
            signal.signal(signal.SIGINT, insist)
            log.warning("stopping when the clients at work are done; Ctrl-C again ends them")

        def insist(signum, frame):
            signal.signal(signal.SIGINT, before)
            if self.plan.backend == "serial":
                raise KeyboardInterrupt
            simulation.end_clients()

        before = signal.signal(signal.SIGINT, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
