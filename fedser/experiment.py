"""One run from configuration to result: the file to read first.

settings = validate(config)      checked, typed
prepared = prepare(settings)     corpus → features → client splits; every component built and tried
a checkpoint, if there is one    where an interrupted run goes on
train, or replay a trained model the rounds
evaluate                         UAR per condition, every few rounds and at the end
record                           the run's folder, a checkpoint, the dashboard, the box on the terminal
"""

import contextlib
import logging
import shutil
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from safetensors.numpy import save

from fedser import __version__
from fedser.config import identity, sources
from fedser.config.protocol import Protocol
from fedser.config.settings import Settings
from fedser.config.validation import validate
from fedser.deployment import server
from fedser.display import Display, size
from fedser.errors import FedserError, InputError, Interrupted, RunError
from fedser.evaluation import record
from fedser.evaluation.metrics import METRICS
from fedser.features.normalisation import Sums
from fedser.federation import optimizer_state, server_app, strategies, updates
from fedser.federation.course import Course
from fedser.models import recogniser
from fedser.models.weights import named, serialised, trained
from fedser.preparation import Preparation, prepare
from fedser.runs import model_cache
from fedser.runs.checkpoint import Checkpoints, State
from fedser.runs.files import disk_error, dumps, write_whole
from fedser.runs.folder import RunFolder, weights_file
from fedser.simulation import interrupt

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """The result of a run: `metrics` as in `summary.json`, `history` as in `history.jsonl` (UARs are fractions)."""

    folder: Path
    metrics: dict
    history: list[dict]


def run(config, folder=None, grid=None) -> Result:
    """Runs one experiment and returns its result.

    `config` comes from `fedser.compose`, validated or not; `folder` is the run's, by default `outputs/<name>` as on the
    command line. A run that has finished there already returns at once (unless `reuse=false`). `grid` is the one that
    Flower gives a ServerApp (`simulation=deploy`).
    Raises InputError before anything is started, RunError when the run fails, Interrupted on Ctrl-C.
    """
    settings = config if isinstance(config, Settings) else validate(config)
    name = identity.run_name(settings)
    place = RunFolder(Path(folder).expanduser() if folder is not None else Path("outputs") / name)
    with place.locked(), server.connected(settings, grid) as deployment:
        experiment = Experiment.load(settings, place, name, deployment)
        known = experiment.finished_before()
        summary = known or Attempt(experiment).run()
        note = "This run had finished before; reuse=false makes it again." if known else ""
        Display().result(place.path, summary, note)
        return Result(place.path, summary, place.history())


@dataclass(frozen=True)
class Experiment:
    """An experiment and its folder; `earlier` is the summary of an attempt that was made there before, or None."""

    settings: Settings
    place: RunFolder
    name: str
    identity: str
    earlier: dict | None
    prepared: Preparation
    deployment: server.Deployment | None = None  # where its clients are real

    @classmethod
    def load(
        cls, settings: Settings, place: RunFolder, name: str, deployment: server.Deployment | None = None
    ) -> "Experiment":
        """Whatever can go wrong before a run starts goes wrong here: data, components, room on the disk.

        Raises InputError, also when the folder holds another configuration's run.
        """
        known, earlier = identity.digest(identity.everything(settings)), place.summary()
        if earlier is not None and earlier.get("identity") != known:
            raise InputError(
                f"{place.path} holds a run of another configuration, or of other code (see its config.yaml and "
                "summary.json): choose another hydra.run.dir=…, or move that folder away."
            )
        prepared = prepare(settings, deployment and deployment.roster)
        experiment = cls(settings, place, name, known, earlier, prepared, deployment)
        experiment._check_room()
        if (told := experiment.prepared.guarantee) and told["why"]:
            log.warning("%s", told["text"])
        return experiment

    def finished_before(self) -> dict | None:
        """The summary that is there already, of the same configuration, code and data."""
        earlier = self.earlier
        finished = earlier is not None and earlier["status"] == "finished" and earlier.get("data") == self.prepared.data
        whole = not self.settings.checkpoint.updates or updates.folder(self.place.path).is_dir()
        return earlier if finished and whole and self.settings.reuse and self.settings.resume else None

    @property
    def persists(self) -> bool:
        """Whether clients keep their optimizer's moments between rounds."""
        return self.settings.client.optimizer_state == "persist"

    @property
    def state_folder(self) -> Path:
        """Where the clients keep their optimizers' moments: in the run's folder, or in one of its own elsewhere."""
        elsewhere, own = self.settings.client.state_folder, self.place.path.absolute()
        if elsewhere is None:
            return own / "state"
        # Not by name alone: the same run may be made in two folders at once.
        return Path(elsewhere).expanduser().absolute() / f"{self.name}-{identity.digest({'folder': str(own)})}"

    def due(self, round: int) -> bool:
        """Whether the model is evaluated after this round."""
        every = self.settings.evaluation.every
        return round == self.settings.rounds or (every is not None and round % every == 0)

    def due_after(self, round: int) -> list[int]:
        """The rounds yet to come that are evaluated."""
        return [later for later in range(round + 1, self.settings.rounds + 1) if self.due(later)]

    def _check_room(self) -> None:
        """Says what a round's replies take of memory, and raises InputError where moments do not fit on the disk."""
        settings, prepared = self.settings, self.prepared
        clients = prepared.trainers
        optimizer = settings.client.build_optimizer(trained(prepared.model))
        strategy = strategies.build_strategy(settings.strategy, clients)
        if not strategies.adds_up(strategy):
            asked, each = strategies.clients_per_round(settings.strategy, clients), prepared.reply_bytes
            log.warning(
                "%s needs all replies of a round at once: %d of %s take %s of this process's memory",
                type(strategy).__name__, asked, size(each), size(asked * each),
            )  # fmt: skip
            if settings.client.optimizer_state == "average":
                log.warning(
                    "clients' optimizer moments are averaged as they are, whatever the strategy does with weights: "
                    "client.optimizer_state=reset where a client may lie or must not be seen"
                )
        if self.persists:
            # Three generations where the last checkpoint's may be older than the last round's.
            generations = 2 if settings.checkpoint.every == 1 else 3
            moments = optimizer_state.bytes_per_parameter(optimizer) * prepared.parameters
            optimizer_state.check_room(self.state_folder, clients, generations, moments)


class Attempt:
    """An experiment under way: from its newest checkpoint, or from the beginning, to its end."""

    def __init__(self, experiment: Experiment):
        self.experiment, self.settings = experiment, experiment.settings
        self.place, self.prepared = experiment.place, experiment.prepared
        self.stop = threading.Event()
        self.plan = self.prepared.plan()
        made_from = identity.digest({"run": experiment.identity, "data": self.prepared.data})
        self.checkpoints = Checkpoints(self.place.path / "checkpoint", made_from)
        self.state = self._newest() or State(0)
        self.summary = self._summary()
        self._take_folder()
        self.tracker = self.settings.logger.build()
        self.display = Display()
        self.started = time.monotonic() - self.state.seconds

    def run(self) -> dict:
        """Trains or replays, evaluates, records; the summary. A failing run is marked so everywhere before its error
        goes on."""
        name, rounds = self.experiment.name, self.settings.rounds
        try:
            with (
                self._dashboard(name),
                interrupt.listening(self.stop, self.plan),
                self.display.rounds(name, rounds, self.plan, self.state.round),
            ):
                self._federate()
            self._finish("finished")
        except OSError as error:
            self._finish("failed", error=str(error))
            raise disk_error(error, f"The run in {self.place.path}") from error
        except (Interrupted, KeyboardInterrupt) as error:
            done = len(self.place.history())
            self._finish("interrupted", error=f"stopped after round {done} of {rounds}")
            then = f"goes on after round {self.state.round}" if self.state.round else "starts it again"
            raise Interrupted(
                f"Stopped after round {done} of {rounds}; what there is stays in {self.place.path}. "
                f"The same command {then}."
            ) from error
        except Exception as error:
            self._finish("failed", error=f"{type(error).__name__}: {error}")
            raise error if isinstance(error, FedserError) else RunError(f"{type(error).__name__}: {error}") from error
        return self.place.summary()

    @contextlib.contextmanager
    def _dashboard(self, name: str) -> Iterator[None]:
        """A block in which the dashboard's run is open once `self.opened` has a result: it takes seconds, in which the
        clients' processes start."""
        with ThreadPoolExecutor(1) as pool:
            history = list(self.state.history)
            self.opened = pool.submit(self.tracker.start, name, self.settings.plain, self.place.path, history)
            yield
            self.opened.result()

    def _newest(self) -> State | None:
        """The newest checkpoint of this experiment that is of use."""
        earlier = self.experiment.earlier
        unfinished = earlier is not None and earlier["status"] != "finished"
        goes_on = self.settings.resume and unfinished and earlier.get("data") == self.prepared.data
        return self.checkpoints.newest(self._objection) if goes_on else None

    def _objection(self, state: State) -> str | None:
        """Why a checkpoint is of no use here, or None."""
        names = [split.name for split in self.prepared.splits]
        folder = self.experiment.state_folder
        if self.experiment.persists and (gone := optimizer_state.gone(folder, names, state.moments)):
            return gone
        due = self.experiment.due_after(state.round)
        if not state.arrays and due and not self._known(due):
            return "it replays a trained model, which is no longer in the cache or not to be reused (reuse=false)"
        return None

    def _known(self, rounds: list[int]) -> "model_cache.Trained | None":
        """The trained model with the weights of these rounds, if it may be reused."""
        raw = [None] if self.settings.refines and rounds else []
        trained_anew = not self.settings.reuse or self.settings.checkpoint.updates  # these are seen in training alone
        return None if trained_anew else model_cache.Trained.find(self.prepared.model_key, [*rounds, *raw])

    def _summary(self) -> dict:
        earlier, now = self.experiment.earlier, datetime.now(UTC).isoformat(timespec="seconds")
        components = [*self.settings.components(), *self.prepared.protocols.attacks.values()]
        facts = {"unseen": self.prepared.unseen, "repeated": self.prepared.repeated()}
        facts["privacy"] = self.prepared.guarantee
        return {
            "status": "running",
            "name": self.experiment.name,
            "identity": self.experiment.identity,
            "data": self.prepared.data,
            "version": __version__,
            "code": identity.code(components, sources.SILENT),
            "started": earlier["started"] if self.state.round else now,
            "clients": len(self.prepared.splits),
            "utterances": len(self.prepared.store),
            "counts": self.prepared.counts(),
            **{key: found for key, found in facts.items() if found},
            "parameters": self.prepared.parameters,
            "cost": self.prepared.cost(),
            "plan": str(self.plan),
        }

    def _take_folder(self) -> None:
        """Goes on in the folder, or starts over and moves aside what is there."""
        if not self.state.round:
            self.place.claim(self.settings.plain, self.summary)
            shutil.rmtree(self.experiment.state_folder, ignore_errors=True)  # elsewhere, it was not moved aside
            return
        self.state.resumed.append(self.state.round)
        self.place.resume(self.state.history, self.summary)
        log.warning("going on after round %d of %d (resume=false starts over)", self.state.round, self.settings.rounds)

    def _federate(self) -> None:
        due = self.experiment.due_after(self.state.round)
        key, stop = self.prepared.model_key, self.stop
        with model_cache.lock(key, stop) if self.settings.reuse else contextlib.ExitStack() as lock:
            known = self._known(due)
            self.summary["reused"] = known is not None
            if known is None and due and self.state.round and not self.state.arrays:
                raise RunError("the trained model that this run replays has left the cache: the same command trains it")
            if known:
                lock.close()
                log.info("the model was trained before: %s", known.folder)
            if self.state.round < self.settings.rounds:
                clients, real = len(self.prepared.splits), self.experiment.deployment
                server.serve(lambda grid: self._serve(grid, known, lock), real, clients, self.plan, stop)

    def _serve(self, grid, known: "model_cache.Trained | None", lock: contextlib.ExitStack) -> None:
        """The server's work behind the grid: the rounds, each evaluated when it is due, then recorded."""
        rounds, keep = self.settings.rounds, self.settings.checkpoint.keep
        federation = self.prepared.federation(
            grid, self.plan, self.stop, self.experiment.state_folder, self.state.moments
        )
        self.opened.result()
        if each := self.settings.checkpoint.updates:
            federation.updates = updates.Updates(updates.folder(self.place.path), each)
        course = known or self._course(federation)
        last = time.monotonic()
        for round, weights, row in course:
            if round <= self.state.round:
                continue
            self.state.train_seconds.append(round_to(time.monotonic() - last, 4))
            due = self.experiment.due(round)
            if due and (keep == "evaluated" or round == rounds):
                self._keep(round, weights, known)
            if round == rounds and self.settings.refines:
                self._keep(None, course.raw, known)
            if round == rounds and not known:
                # Before the last evaluation: should that fail, the training is not lost.
                kept = self.place.path / "weights"
                model_cache.publish(self.prepared.model_key, kept, [*self.state.history, row])
                lock.close()
            if due:
                row = row | self._evaluate(federation, round, weights)
            if round == rounds and self.settings.refines:
                row = row | self._evaluate_raw(federation, course.raw)
            if round == rounds:
                self._write_model(weights, federation.everyone)
            self._record(row, course, federation)
            last = time.monotonic()

    def _evaluate(self, federation: server_app.Federation, round: int, weights: dict) -> dict:
        """What the history says of an evaluated round; the last one is tested on everything that was asked for."""
        if round == self.settings.rounds:
            results = self.prepared.evaluate(federation, round, weights, self.place.path, self.display)
        else:
            results = federation.evaluate(round, weights, self.prepared.protocols.curve)
        return results.metrics() | ({"evaluate/missing": results.missing} if results.missing else {})

    def _evaluate_raw(self, federation: server_app.Federation, weights: dict) -> dict:
        """The figures of the last round's weights before averaging and selection, on original data."""
        protocol = Protocol(randomised=False, fraction=self.settings.evaluation.fraction)
        found = federation.evaluate(self.settings.rounds, weights, protocol).metrics()
        return {f"{metric}/raw/original": found[f"{metric}/original"] for metric in METRICS}

    def _course(self, federation: server_app.Federation) -> Course:
        selection, due = self.prepared.protocols.selection, self.experiment.due
        course = Course(federation, self.settings, selection, self.prepared.weights, due, self.state)
        self.state.arrays = {}
        return course

    def _keep(self, round: int | None, weights: dict, known: "model_cache.Trained | None") -> None:
        """The weights of an evaluated round, in the run's folder; a reused model's are not stored twice."""
        file = weights_file(self.place.path / "weights", round)
        if known:
            model_cache.link(weights_file(known.folder, round), file)
        else:
            write_whole(file, save(weights))

    def _write_model(self, weights: dict, everyone: Sums) -> None:
        """The trained model for whoever loads it. Before the last checkpoint, from which a run goes on without clients,
        who alone know what their inputs were normalised by."""
        code = {"run": self.experiment.name, "fedser": __version__, "code": self.summary["code"]}
        norm = self.prepared.norm
        about = recogniser.describe(self.settings, self.prepared.classes, everyone, batch_norm=norm, **code)
        content = serialised(named(weights, self.prepared.model), about)
        write_whole(self.place.path / "model.safetensors", content)

    def _record(self, row: dict, course: "Course | model_cache.Trained", federation: server_app.Federation) -> None:
        """One round is complete: its row in the history, on the dashboard and the terminal, and a checkpoint."""
        self.place.append(row)
        self.tracker.log(row)
        self.display.round(row)
        self.state.history.append(row)
        round, every = row["round"], self.settings.checkpoint.every
        if every and (round % every == 0 or round == self.settings.rounds):
            seconds = time.monotonic() - self.started
            state = replace(self.state, round=round, moments=federation.moments, seconds=seconds)
            self.checkpoints.save(course.kept(state))
            self.state.round = round
            federation.commit()

    def _finish(self, status: str, error: str | None = None) -> None:
        """Writes the run's last files and closes the dashboard, whatever the status."""
        measured = record.read(self.place.path) if status == "finished" else None
        history = self.place.history()
        self.summary |= {"status": status, "seconds": round(time.monotonic() - self.started, 2), "rounds": len(history)}
        self.summary |= _last_metrics(history) | (record.metrics(measured) if measured else {})
        self.summary |= {"error": error} if error else {}
        if seconds := self.state.train_seconds:
            self.summary |= {"train_seconds": seconds, "seconds_per_round": round_to(sum(seconds) / len(seconds), 3)}
            if not self.summary.get("reused"):
                self.summary["cost"]["seconds"] = round_to(statistics.median(seconds), 3)  # a round
        self.summary |= {"resumed_after": self.state.resumed} if self.state.resumed else {}
        try:
            self.place.write("summary.json", dumps(self.summary, indent=2))
        except OSError as problem:  # must not hide why the run failed; and a finished run must not claim to be whole
            if status == "finished":
                raise
            log.error("the run's last files could not be written: %s", problem)
        self.tracker.finish(self.summary, measured)
        if status == "finished":  # nothing more to go on from
            shutil.rmtree(self.experiment.state_folder, ignore_errors=True)
            shutil.rmtree(self.checkpoints.folder, ignore_errors=True)


def _last_metrics(history: list[dict]) -> dict[str, float]:
    """The metrics per condition of the last round that was evaluated."""
    rows = [row for row in history if "uar/original" in row]
    return {key: rows[-1][key] for key in rows[-1] if key.partition("/")[0] in METRICS} if rows else {}


def round_to(value: float, digits: int) -> float:
    """The value to so many significant digits."""
    return float(f"{value:.{digits}g}")
