"""One run from configuration to result: the file to read first.

settings = settle(config)           checked plain values
corpus → features → shares          what the clients hold
a checkpoint, if there is one       where an interrupted run goes on
train, or replay a trained model    the rounds
evaluate                            UAR per condition, every few rounds and at the end
record                              the run's folder, a checkpoint, the dashboard, the box on the terminal
"""

import logging
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from fedser import __version__
from fedser.config import identity, protocol
from fedser.config.compose import build, settle
from fedser.display import Display, size
from fedser.errors import FedserError, InputError, Interrupted, RunError
from fedser.evaluation import record as records
from fedser.federation import optimizer_state, server_app, strategies, transport
from fedser.federation.client_app import app as client_app
from fedser.preparation import Preparation, prepare
from fedser.runs import model_cache
from fedser.runs.checkpoint import Checkpoints, State
from fedser.runs.files import disk_error, dumps
from fedser.runs.folder import RunFolder
from fedser.simulation import backend, interrupt

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
        finished = earlier is not None and earlier["status"] == "finished" and earlier.get("data") == self.prepared.data
        if not finished or not (self.settings["reuse"] and self.settings["resume"]):
            return None
        Display().result(self.place.path, earlier, note="This run had finished before; reuse=false makes it again.")
        return Result(self.place.path, earlier, self.place.history())

    def load(self) -> None:
        """What can go wrong before a run starts: data, features, shares, defences, room on the disk."""
        self.prepared: Preparation = prepare(self.settings)
        self._check_training()

    def run(self) -> Result:
        """Trains or replays, evaluates, records. A failing run is marked so everywhere before its error goes on."""
        self.plan = self.prepared.plan()
        self._begin()
        self.tracker = build(self.settings["logger"])
        self.display = Display()
        self.started = time.monotonic() - self.state.seconds
        try:
            self.tracker.start(self.name, self.settings, self.place.path, self.state.history)
            with (
                interrupt.listening(self.stop, self.plan),
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
        made_from = identity.digest({"run": self.identity, "data": self.prepared.data})
        self.checkpoints = Checkpoints(self.place.path / "checkpoint", made_from)
        unfinished = self.earlier is not None and self.earlier["status"] != "finished"
        goes_on = self.settings["resume"] and unfinished and self.earlier.get("data") == self.prepared.data
        state = self.checkpoints.newest(self._objection) if goes_on else None
        self.state = state or State(0)
        self.summary = {
            "status": "running",
            "name": self.name,
            "identity": self.identity,
            "data": self.prepared.data,
            "version": __version__,
            "started": self.earlier["started"] if state else datetime.now(UTC).isoformat(timespec="seconds"),
            "clients": len(self.prepared.shares),
            "utterances": len(self.prepared.store),
            "parameters": self.prepared.parameters,
            "plan": str(self.plan),
        }
        if state is None:
            self.place.claim(self.settings, self.summary)
            shutil.rmtree(self._state_folder(), ignore_errors=True)  # elsewhere, it was not moved aside
            return
        state.resumed.append(state.round)
        self.place.resume(state.history, self.summary)
        log.warning("going on after round %d of %d (resume=false starts over)", state.round, self.settings["rounds"])

    def _objection(self, state: State) -> str | None:
        """Why a checkpoint is of no use here, or None."""
        names = [share.name for share in self.prepared.shares]
        if self._persists() and (gone := optimizer_state.gone(self._state_folder(), names, state.moments)):
            return gone
        due = [round for round in self._due_rounds() if round > state.round]
        known = self.settings["reuse"] and model_cache.Trained.find(self.prepared.model_key, due)
        if not state.arrays and due and not known:
            return "it replays a trained model, which is no longer in the cache or not to be reused (reuse=false)"
        return None

    def _federate(self) -> None:
        due = [round for round in self._due_rounds() if round > self.state.round]
        lock = model_cache.Lock(self.prepared.model_key)
        if self.settings["reuse"]:
            lock.acquire(self.stop)
        try:
            known = model_cache.Trained.find(self.prepared.model_key, due) if self.settings["reuse"] else None
            self.summary["reused"] = known is not None
            if known is None and due and self.state.round and not self.state.arrays:
                raise RunError("the trained model that this run replays has left the cache: the same command trains it")
            if known:
                lock.release()
                log.info("the model was trained before: %s", known.folder)
            if self.state.round < self.settings["rounds"]:
                clients = len(self.prepared.shares)
                backend.simulate(lambda grid: self._serve(grid, known, lock), client_app, clients, self.plan, self.stop)
        finally:
            lock.release()

    def _serve(self, grid, known: model_cache.Trained | None, lock: model_cache.Lock) -> None:
        """The server's work behind the grid: the rounds, each evaluated when it is due, then recorded."""
        settings = self.settings
        federation = self.prepared.federation(grid, self.plan, self.stop, self._state_folder(), self.state.moments)
        strategy = strategies.build_strategy(settings, len(self.prepared.shares))
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
                model_cache.publish(self.prepared.model_key, self.place.path / "weights", [*self.state.history, row])
                lock.release()
            if due:
                row = row | self._evaluate(federation, round, weights)
            self._record(row, weights if not known else {}, federation, strategy)
            last = time.monotonic()

    def _evaluate(self, federation: server_app.Federation, round: int, weights: dict) -> dict:
        """What the history says of an evaluated round; the last one is tested on everything that was asked for."""
        last = round == self.settings["rounds"]
        began = time.monotonic()
        asked = protocol.final(self.settings) if last else protocol.curve(self.settings)
        outcome = federation.evaluate(round, weights, asked)
        if last:
            records.write(self.place.path, self.prepared, outcome, round, time.monotonic() - began)
        return outcome.metrics() | ({"evaluate/missing": outcome.missing} if outcome.missing else {})

    def _train(self, federation, strategy) -> Iterator[tuple[int, dict, dict]]:
        weights = transport.pack(self.prepared.model)
        if self.state.arrays:
            weights = {key: self.state.arrays[key] for key in transport.KEYS}
            strategies.restore(strategy, self.state.strategy, self.state.arrays)
            self.state.arrays = {}
        return server_app.train_rounds(federation, strategy, weights, self.settings, self.state.round)

    def _keep(self, round: int, weights: dict, known: model_cache.Trained | None) -> None:
        """The weights of an evaluated round, in the run's folder; a reused model's are not stored twice."""
        file = model_cache.weights_file(self.place.path / "weights", round)
        if known:
            model_cache.link(model_cache.weights_file(known.folder, round), file)
        else:
            model_cache.save_weights(weights, file)

    def _record(self, row: dict, weights: dict, federation, strategy) -> None:
        """One round is complete: its row in the history, on the dashboard and the terminal, and a checkpoint."""
        self.place.append(row)
        self.tracker.log(row)
        self.display.round(row)
        self.state.history.append(row)
        round, every = row["round"], self.settings["checkpoint"]["every"]
        if every and (round % every == 0 or round == self.settings["rounds"]):
            plain, arrays = strategies.state(strategy) if weights else ({}, {})
            self.checkpoints.save(
                replace(
                    self.state,
                    round=round,
                    arrays=weights | arrays,
                    strategy=plain,
                    moments=federation.moments,
                    seconds=time.monotonic() - self.started,
                )
            )
            self.state.round = round
            federation.commit()

    def _due_rounds(self) -> list[int]:
        return [round for round in range(1, self.settings["rounds"] + 1) if self._due(round)]

    def _due(self, round: int) -> bool:
        every = self.settings["evaluation"]["every"]
        return round == self.settings["rounds"] or (every is not None and round % every == 0)

    def _persists(self) -> bool:
        return self.settings["client"]["optimizer_state"] == "persist"

    def _state_folder(self) -> Path:
        """Where the clients keep their optimizers' moments: in the run's folder, or in one of its own elsewhere."""
        elsewhere, own = self.settings["client"]["state_folder"], self.place.path.absolute()
        if elsewhere is None:
            return own / "state"
        # Not by name alone: the same run may be made in two folders at once.
        return Path(elsewhere).expanduser().absolute() / f"{self.name}-{identity.digest({'folder': str(own)})}"

    def _finish(self, status: str, error: str | None = None) -> None:
        """Writes the run's last files and closes the dashboard, whatever the status."""
        self.summary |= {"status": status, "seconds": round(time.monotonic() - self.started, 2)}
        record = records.read(self.place.path) if status == "finished" else None
        self.summary |= {"rounds": len(self.place.history())}
        self.summary |= records.metrics(record) if record else self._last_metrics()
        if error:
            self.summary["error"] = error
        if self.state.train_seconds:
            seconds = self.state.train_seconds
            self.summary |= {"train_seconds": seconds, "seconds_per_round": round_to(sum(seconds) / len(seconds), 3)}
        if self.state.resumed:
            self.summary["resumed_after"] = self.state.resumed
        try:
            if status == "finished":
                final = model_cache.weights_file(self.place.path / "weights", self.settings["rounds"])
                model_cache.link(final, self.place.path / "model.safetensors")
            self.place.write("summary.json", dumps(self.summary, indent=2))
        except OSError as problem:
            # A full disk must not hide why the run failed; a finished run must not claim to be whole.
            if status == "finished":
                raise
            log.error("the run's last files could not be written: %s", problem)
        self.tracker.finish(self.summary, record)
        if status == "finished":  # nothing more to go on from
            shutil.rmtree(self._state_folder(), ignore_errors=True)
            shutil.rmtree(self.checkpoints.folder, ignore_errors=True)

    def _last_metrics(self) -> dict[str, float]:
        """UAR and accuracy per condition of the last round that was evaluated."""
        rows = [row for row in self.place.history() if "uar/original" in row]
        return {key: rows[-1][key] for key in rows[-1] if key.startswith(("uar/", "accuracy/"))} if rows else {}

    def _check_training(self) -> None:
        """What a client would stumble over in the first round fails before it, and so does a lack of room."""
        settings, clients = self.settings, len(self.prepared.shares)
        optimizer = build(settings["client"]["optimizer"])(self.prepared.model.parameters())
        strategy = strategies.build_strategy(settings, clients)
        if not strategies.adds_up(strategy):
            asked, each = strategies.clients_per_round(settings, clients), self.prepared.reply_bytes
            log.warning(
                "%s needs all replies of a round at once: %d of %s take %s of this process's memory",
                type(strategy).__name__, asked, size(each), size(asked * each),
            )  # fmt: skip
        if self._persists():
            # Three generations where the last checkpoint's may be older than the last round's.
            generations = 2 if settings["checkpoint"]["every"] == 1 else 3
            moments = optimizer_state.bytes_per_parameter(optimizer) * self.prepared.parameters
            optimizer_state.check_room(self._state_folder(), clients, generations, moments)


def round_to(value: float, digits: int) -> float:
    """The value to so many significant digits."""
    return float(f"{value:.{digits}g}")
