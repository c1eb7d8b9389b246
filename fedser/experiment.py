"""One run from configuration to result: the file to read first.

settings = settle(config)           checked plain values
corpus → features → shares          what the clients hold
a checkpoint, if there is one       where an interrupted run goes on
train, or replay a trained model    the rounds
evaluate                            UAR per condition, every few rounds and at the end
record                              the run's folder, a checkpoint, the dashboard, the box on the terminal
"""

import json
import logging
import math
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from fedser import __version__, corpora, evaluation, features, identity, trained
from fedser.checkpoint import Checkpoints, State
from fedser.config import build, evaluation_attacks, settle
from fedser.display import Display
from fedser.errors import FedserError, InputError, Interrupted, RunError
from fedser.federation import server_app, simulation, strategies, transport
from fedser.federation.client_app import app as client_app
from fedser.federation.optimizer_state import OptimizerState, bytes_per_parameter, folder_of
from fedser.federation.probe import probe
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
        if not same or not (self.settings["reuse"] and self.settings["resume"]):
            return None
        Display().result(self.place.path, earlier, note="This run had finished before; reuse=false makes it again.")
        return Result(self.place.path, earlier, self.place.history())

    def load(self) -> None:
        """What can go wrong before a run starts: data, features, shares, defences, room on the disk."""
        settings = self.settings
        self.attacks = evaluation_attacks(settings)
        self.corpus = corpora.load(settings)
        self.store = features.extract(self.corpus, settings["features"], settings["dataset"]["on_bad_audio"])
        self.shares: list[Share] = partition(self.store.table, settings["partition"], settings["seed"])
        warn_of_gaps(self.store.table, self.shares, self.corpus.classes)
        self.model = self._initial_model()
        self.reply_bytes = sum(array.nbytes for array in transport.pack(self.model).values())
        self._check_defences()
        self._check_room()
        self.model_key = identity.digest(identity.training(settings) | {"data": self.store.folder.name})

    def run(self) -> Result:
        """Trains or replays, evaluates, records. A failing run is marked so everywhere before its error goes on."""
        probed = probe(self.settings, len(self.corpus.classes), self.shares, self.attacks)
        self.plan = simulation.plan(self.settings, self.shares, self.reply_bytes, probed)
        self._begin()
        self.tracker = build(self.settings["logger"])
        self.display = Display()
        self.started = time.monotonic() - self.state.seconds
        try:
            self.tracker.start(self.name, self.settings, self.place.path, self.state.history)
            with (
                self._stop_on_ctrl_c(),
                self.display.rounds(self.name, self.settings["rounds"], self.plan, self.state.round),
            ):
                self._federate()
            self._finish("finished")
        except OSError as error:
            self._finish("failed", error=str(error))
            raise disk_error(error, f"The run in {self.place.path}") from error
        except (Interrupted, KeyboardInterrupt) as error:
            done = len(self.place.history())
            self._finish("interrupted", error=f"stopped after round {done} of {self.settings['rounds']}")
            then = f"goes on after round {self.state.round}" if self.state.round else "starts it again"
            raise Interrupted(
                f"Stopped after round {done} of {self.settings['rounds']}; what there is stays in {self.place.path}. "
                f"The same command {then}."
            ) from error
        except Exception as error:
            self._finish("failed", error=f"{type(error).__name__}: {error}")
            raise error if isinstance(error, FedserError) else RunError(f"{type(error).__name__}: {error}") from error
        self.display.result(self.place.path, self.summary)
        return Result(self.place.path, self.place.summary(), self.place.history())

    def _begin(self) -> None:
        """Takes the folder: goes on from its newest checkpoint, or starts over and moves aside what is there."""
        self.checkpoints = Checkpoints(
            self.place.path / "checkpoint", identity.digest({"run": self.identity, "data": self.store.folder.name})
        )
        unfinished = self.earlier is not None and self.earlier["status"] != "finished"
        goes_on = self.settings["resume"] and unfinished and self.earlier.get("data") == self.store.folder.name
        state = self.checkpoints.newest(self._objection) if goes_on else None
        self.state = state or State(0)
        self.summary = {
            "status": "running",
            "name": self.name,
            "identity": self.identity,
            "data": self.store.folder.name,
            "version": __version__,
            "started": self.earlier["started"] if state else datetime.now(UTC).isoformat(timespec="seconds"),
            "clients": len(self.shares),
            "utterances": len(self.store),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "plan": str(self.plan),
        }
        if state is None:
            self.place.claim(self.settings, self.summary)
            shutil.rmtree(self._state_folder(), ignore_errors=True)  # elsewhere, it was not moved aside
            return
        state.resumed.append(state.round)
        self.matrices = {
            client: {condition: np.array(matrix) for condition, matrix in found.items()}
            for client, found in state.matrices.items()
        }
        self.place.resume(state.history, self.summary)
        log.warning("going on after round %d of %d (resume=false starts over)", state.round, self.settings["rounds"])

    def _objection(self, state: State) -> str | None:
        """Why a checkpoint is of no use here, or None."""
        if self._persists():
            for share, round in zip(self.shares, state.moments, strict=True):
                file = OptimizerState(folder_of(self._state_folder(), share.number)).file(round)
                if round and not file.is_file():
                    return f"the optimizer's moments of client '{share.name}' after round {round} are gone ({file})"
        due = [round for round in self._due_rounds() if round > state.round]
        if not state.arrays and due and not (self.settings["reuse"] and trained.Trained.find(self.model_key, due)):
            return "it replays a trained model, which is no longer in the cache or not to be reused (reuse=false)"
        return None

    def _federate(self) -> None:
        due = [round for round in self._due_rounds() if round > self.state.round]
        lock = trained.Lock(self.model_key)
        if self.settings["reuse"]:
            lock.acquire(self.stop)
        try:
            known = trained.Trained.find(self.model_key, due) if self.settings["reuse"] else None
            self.summary["reused"] = known is not None
            if known is None and due and self.state.round and not self.state.arrays:
                raise RunError("the trained model that this run replays has left the cache: the same command trains it")
            if known:
                lock.release()
                log.info("the model was trained before: %s", known.folder)
            if self.state.round < self.settings["rounds"]:
                clients = len(self.shares)
                simulation.simulate(
                    lambda grid: self._serve(grid, known, lock), client_app, clients, self.plan, self.stop
                )
        finally:
            lock.release()

    def _serve(self, grid, known: trained.Trained | None, lock: trained.Lock) -> None:
        """The server's work behind the grid: the rounds, each evaluated when it is due, then recorded."""
        settings = self.settings
        federation = server_app.Federation(
            grid,
            len(self.shares),
            self._told(),
            self.stop,
            settings["simulation"]["min_reply_fraction"],
            self.plan.window,
            moments=self.state.moments,
        )
        federation.introduce()
        strategy = strategies.build_strategy(settings, len(self.shares))
        last = time.monotonic()
        for round, weights, row in known.replay() if known else self._train(federation, strategy):
            if round <= self.state.round:
                continue
            self.state.train_seconds.append(round_to(time.monotonic() - last, 4))
            due = self._due(round)
            if due and (settings["checkpoint"]["keep"] == "evaluated" or round == settings["rounds"]):
                self._keep(round, weights, known)
            if round == settings["rounds"] and not known:
                # Before the last evaluation: should that fail, the training is not lost.
                trained.publish(self.model_key, self.place.path / "weights", [*self.state.history, row])
                lock.release()
            if due:
                self.matrices, missing = federation.evaluate(round, weights)
                row = row | self._metrics(recall=False) | ({"evaluate/missing": missing} if missing else {})
            self._record(row, weights if not known else {}, federation, strategy)
            last = time.monotonic()

    def _train(self, federation, strategy) -> Iterator[tuple[int, dict, dict]]:
        weights = transport.pack(self.model)
        if self.state.arrays:
            weights = {key: self.state.arrays[key] for key in transport.KEYS}
            strategies.restore(strategy, self.state.strategy, self.state.arrays)
            self.state.arrays = {}
        return server_app.train_rounds(federation, strategy, weights, self.settings, self.state.round)

    def _keep(self, round: int, weights: dict, known: trained.Trained | None) -> None:
        """The weights of an evaluated round, in the run's folder; a reused model's are not stored twice."""
        file = trained.weights_file(self.place.path / "weights", round)
        if known:
            trained.link(trained.weights_file(known.folder, round), file)
        else:
            trained.save_weights(weights, file)

    def _record(self, row: dict, weights: dict, federation, strategy) -> None:
        """One round is complete: its row in the history, on the dashboard and the terminal, and a checkpoint."""
        self.place.append(row)
        self.tracker.log(row)
        self.display.round(row)
        self.state.history.append(row)
        round, every = row["round"], self.settings["checkpoint"]["every"]
        if every and (round % every == 0 or round == self.settings["rounds"]):
            plain, arrays = strategies.state(strategy) if weights else ({}, {})
            matrices = json.loads(dumps(self.matrices))
            self.checkpoints.save(
                replace(
                    self.state,
                    round=round,
                    arrays=weights | arrays,
                    strategy=plain,
                    moments=federation.moments,
                    matrices=matrices,
                    seconds=time.monotonic() - self.started,
                )
            )
            self.state.round = round
            federation.commit()

    def _due_rounds(self) -> list[int]:
        return [round for round in range(1, self.settings["rounds"] + 1) if self._due(round)]

    def _due(self, round: int) -> bool:
        return round % self.settings["evaluation"]["every"] == 0 or round == self.settings["rounds"]

    def _told(self) -> dict:
        """What the server tells every client about the experiment: plain values, no data."""
        return {
            "settings": self.settings,
            "classes": self.corpus.classes,
            "attacks": self.attacks,
            "store": str(self.store.folder),
            "state": str(self._state_folder()),
            "clients_per_gpu": int(1 / self.plan.num_gpus) if 0 < self.plan.num_gpus <= 1 else 1,
        }

    def _persists(self) -> bool:
        return self.settings["client"]["optimizer_state"] == "persist"

    def _state_folder(self) -> Path:
        """Where the clients keep their optimizers' moments: in the run's folder, or in one of its own elsewhere."""
        elsewhere, own = self.settings["client"]["state_folder"], self.place.path.absolute()
        if elsewhere is None:
            return own / "state"
        # Not by name alone: the same run may be made in two folders at once.
        return Path(elsewhere).expanduser().absolute() / f"{self.name}-{identity.digest({'folder': str(own)})}"

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
        if self.state.train_seconds:
            seconds = self.state.train_seconds
            self.summary |= {"train_seconds": seconds, "seconds_per_round": round_to(sum(seconds) / len(seconds), 3)}
        if self.state.resumed:
            self.summary["resumed_after"] = self.state.resumed
        try:
            if status == "finished":
                final = trained.weights_file(self.place.path / "weights", self.settings["rounds"])
                trained.link(final, self.place.path / "model.safetensors")
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
        if status == "finished":  # nothing more to go on from
            shutil.rmtree(self._state_folder(), ignore_errors=True)
            shutil.rmtree(self.checkpoints.folder, ignore_errors=True)

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
        strategy = strategies.build_strategy(self.settings, len(self.shares))
        if not strategies.adds_up(strategy):
            clients = strategies.clients_per_round(self.settings, len(self.shares))
            log.warning(
                "%s needs all replies of a round at once: %d of %s take %s of this process's memory",
                type(strategy).__name__, clients, size(self.reply_bytes), size(clients * self.reply_bytes),
            )  # fmt: skip
        if (randomise := build(self.settings["defence"]["inference"])) is not None:
            randomise(torch.zeros(1, 1, self.settings["features"]["frames"], self.settings["features"]["mels"]))

    def _check_room(self) -> None:
        """Raises InputError when the clients' moments will not fit where they are kept."""
        if not self._persists():
            return
        optimizer = build(self.settings["client"]["optimizer"])(self.model.parameters())
        generations = 2 if self.settings["checkpoint"]["every"] == 1 else 3  # also that of the last checkpoint
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        needed = generations * len(self.shares) * bytes_per_parameter(optimizer) * parameters
        folder = self._state_folder()
        there = sum(file.stat().st_size for file in folder.glob("*/*.safetensors"))
        room = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.is_dir())).free + there
        if needed > room:
            raise InputError(
                f"client.optimizer_state=persist needs {size(needed)} for the moments of {len(self.shares)} clients, "
                f"{generations} times, and {folder} has room for {size(room)}: set client.state_folder=… or "
                "client.optimizer_state=reset."
            )

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


def round_to(value: float, digits: int) -> float:
    """The value to so many significant digits."""
    return float(f"{value:.{digits}g}")


def size(count: float) -> str:
    """Bytes for people: 59.5 MB."""
    power = min(int(math.log10(max(count, 1)) / 3), 3)
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB')[power]}"
