"""Finished runs under other attacks, without training: the command `fedser-evaluate`.

    fedser-evaluate outputs/RUN evaluation=full
    fedser-evaluate outputs evaluation=full evaluation.eps=0.1 simulation.actors=4
    fedser-evaluate outputs/RUN "evaluation.attacks=[pgd_strong]" round=30

What has an `=` is an override, as for `fedser`, of the groups `evaluation`, `simulation`, `attack`, `attacks`,
`detector`, `logger` and `defence/inference` (`randomise` for a run without one). All else is as in the run. The record
goes to `RUN/evaluations/<name>-<hash>`; what is there already is not measured again.
"""

import argparse
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from fedser import __version__
from fedser.config import compose, identity
from fedser.config.protocol import Protocols
from fedser.config.settings import Settings
from fedser.config.validation import validate
from fedser.deployment import server
from fedser.display import Display, duration
from fedser.errors import FedserError, InputError, Interrupted
from fedser.evaluation import record as records
from fedser.preparation import Preparation, prepare
from fedser.runs.files import disk_error
from fedser.runs.folder import RunFolder, run_folders
from fedser.simulation import interrupt

log = logging.getLogger(__name__)
# Groups that may be other than the run's.
FROM_THE_COMMAND = ("evaluation", "attack", "attacks", "detector", "simulation", "logger")
INFERENCE = re.compile(r"defence[/.]inference")
GROUPS = f"{', '.join(FROM_THE_COMMAND)}, defence/inference, round and reuse"


def evaluate(folder: str | Path, overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> dict:
    """Evaluates one finished run anew and returns its `evaluation.json`; see `fedser.evaluation.record`.

    Raises InputError for a folder without a finished run, for data that has changed since, and for overrides that are
    the training's; RunError when a client fails.
    """
    place = RunFolder(Path(folder))
    round, weights = weights_of(place, overrides)
    words = [word for word in overrides if not word.startswith(("round=", "reuse="))]
    settings = settings_of(place, words, config_dir)
    attacks, device = Protocols.of(settings).attacks, identity.device(settings)
    made_by = identity.measured(settings, attacks) | {"round": round, "version": __version__, "device": device}
    name = f"{settings.evaluation.name}-{identity.digest(made_by)}"
    target = place.path / "evaluations" / name
    if "reuse=false" not in overrides and (known := records.read(target)):
        log.warning("%s was measured before (reuse=false measures it again)", target)
        return known
    with server.connected(settings) as deployment:
        prepared = prepared_as(place, settings, deployment)
        record = _measure(prepared, target, round, weights, deployment)
    _track(place, settings, target, record)
    return record


def prepared_as(place: RunFolder, settings: Settings, deployment: server.Deployment | None = None) -> Preparation:
    """What a run was trained with, prepared again. Raises InputError where the data have changed since."""
    prepared = prepare(settings, deployment and deployment.roster)
    if prepared.data != place.summary().get("data"):
        raise InputError(
            f"{place.path} was trained on other data than dataset.root={settings.dataset.root} has now: "
            "evaluate it where its audio and features are as they were."
        )
    return prepared


def _measure(
    prepared: Preparation, target: Path, round: int, weights: dict, deployment: server.Deployment | None
) -> dict:
    plan, stop = prepared.plan(), threading.Event()
    log.warning("%s\n%s", target, plan)

    def work(grid) -> None:
        prepared.evaluate(prepared.federation(grid, plan, stop, target), round, weights, target, Display())

    try:
        with interrupt.listening(stop, plan):
            server.serve(work, deployment, len(prepared.splits), plan, stop)
    except OSError as error:
        raise disk_error(error, f"The evaluation in {target}") from error
    return records.read(target)


def _track(place: RunFolder, settings: Settings, target: Path, record: dict) -> None:
    """A run of its own on the dashboard, beside the one that trained the model; the evidence is there without it."""
    tracker = settings.logger.build()
    try:
        tracker.start(f"{place.path.name}-{target.name}", settings.plain, target, [], job="evaluate")
        tracker.finish(records.metrics(record) | {"status": "finished", "round": record["round"]}, record)
    except Exception as error:
        log.warning("%s is not on the dashboard: %s", target, error)


def weights_of(place: RunFolder, overrides: Sequence[str]) -> tuple[int, dict]:
    """The round to evaluate, by default the last, and the model's weights after it."""
    summary = place.summary()
    if summary is None:
        raise InputError(f"{place.path} holds no run (no summary.json): give a run's folder.")
    chosen = [word.partition("=")[2] for word in overrides if word.startswith("round=")]
    if chosen and not chosen[-1].isdigit():
        raise InputError(f"round={chosen[-1]} must be one of the rounds whose weights were kept.")
    if not chosen and summary["status"] != "finished":
        raise InputError(
            f"{place.path} is {summary['status']}, its model is not trained to the end: give the command that made it "
            "once more, or choose one of its evaluated rounds with round=…"
        )
    round = int(chosen[-1]) if chosen else summary["rounds"]
    return round, place.weights(round)


def settings_of(
    place: RunFolder,
    overrides: Sequence[str],
    config_dir: str | Path | None = None,
    checkpoint: str | Path | None = None,
) -> Settings:
    """The run's settings, with what the overrides say of the groups that an evaluation may change, and where the
    `checkpoint` of a backbone lies now."""
    keys = [word.lstrip("+~").partition("=")[0] for word in overrides]
    for word, key in zip(overrides, keys, strict=True):
        if re.split(r"[./@]", key)[0] not in FROM_THE_COMMAND and not INFERENCE.match(key):
            raise InputError(f"{word}: belongs to the training. fedser-evaluate takes {GROUPS}.")
    run = place.config()
    composed = compose.compose(overrides, config_dir)
    OmegaConf.set_struct(composed, False)
    settings = OmegaConf.merge(composed)
    for key in run:
        if key not in ("evaluation", "simulation", "attacks") and key not in keys:  # a group chosen anew stays
            settings[key] = run[key]
    settings.attacks = OmegaConf.merge(composed.attacks, run.attacks)
    settings.modules = [*run.get("modules", []), *composed.modules]
    if run.defence.inference is None or any(map(INFERENCE.match, keys)):
        settings.defence.inference = composed.defence.inference
    for key in keys:
        if "." in key and not key.startswith(("evaluation.", "simulation.")):
            OmegaConf.update(settings, key, OmegaConf.select(composed, key))
    if checkpoint:
        settings.model.checkpoint = str(checkpoint)
    return validate(settings)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code. A run that can't be evaluated does not take the others with it."""
    parser = argparse.ArgumentParser(prog="fedser-evaluate", description=__doc__.split("\n\n")[0])
    parser.add_argument("words", nargs="+", metavar="RUN|KEY=VALUE", help="runs' folders, and overrides as for fedser")
    parser.add_argument("--config-dir", metavar="DIR", help="a folder with YAML files and modules of your own")
    chosen = parser.parse_intermixed_args(argv)
    words = chosen.words
    sys.path.append(os.getcwd())  # modules of the user's own
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    codes = []
    try:
        folders = run_folders([word for word in words if "=" not in word or Path(word).exists()])
        overrides = [word for word in words if "=" in word and not Path(word).exists()]
        for number, folder in enumerate(folders, start=1):
            codes.append(_one(folder, overrides, f"{number}/{len(folders)}", chosen.config_dir))
    except (Interrupted, KeyboardInterrupt):
        print("fedser-evaluate: stopped; the same command goes on with what is left", file=sys.stderr)
        return 130
    except FedserError as error:
        return _complain(error)
    return max(codes, default=0)


def _one(folder: Path, overrides: Sequence[str], number: str, config_dir: str | None) -> int:
    began = time.monotonic()
    try:
        record = evaluate(folder, overrides, config_dir)
    except Interrupted:
        raise
    except FedserError as error:
        return _complain(error)
    raised = [flag["title"] for flag in record["flags"] if flag["status"] == "raised"]
    print(f"{number} {folder.name}: {len(record['conditions'])} conditions, {duration(time.monotonic() - began)}")
    for title in raised:
        print(f"    flag: {title}")
    return 0


def _complain(error: FedserError) -> int:
    print(f"fedser-evaluate: {error}", file=sys.stderr)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
