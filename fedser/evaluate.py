"""Finished runs under other attacks, without training: the command `fedser-evaluate`.

    fedser-evaluate outputs/RUN evaluation=full
    fedser-evaluate outputs evaluation=full evaluation.eps=0.1 simulation.actors=4
    fedser-evaluate outputs/RUN "evaluation.attacks=[pgd_strong]" round=30

What has an `=` is an override, as for `fedser`: of the groups `evaluation`, `attack`, `attacks`, `simulation`, `logger`
(by default the run's own) and of `defence/inference`, which is what is worn (by default the run's own, or `randomise`
for a run without one). All else is the run's. The evidence goes to `RUN/evaluations/<name>-<hash>`; what is there
already is not measured again.
"""

import argparse
import logging
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from fedser import __version__, agenda, config, evidence, identity, interrupt, trained
from fedser.display import duration
from fedser.errors import FedserError, InputError, Interrupted, RunError
from fedser.federation import simulation
from fedser.federation.client_app import app as client_app
from fedser.preparation import prepare
from fedser.tracking import RunFolder, disk_error, run_folders

log = logging.getLogger(__name__)
FROM_THE_COMMAND = ("evaluation", "attack", "attacks", "simulation")  # the groups that are not the run's
GROUPS = (*FROM_THE_COMMAND, "defence/inference", "logger", "round", "reuse")


def evaluate(folder: str | Path, overrides: Sequence[str] = ()) -> dict:
    """Evaluates one finished run anew and returns its `evaluation.json`; see `fedser.evidence`.

    Raises InputError for a folder without a finished run, for data that has changed since, and for overrides that are
    the training's; RunError when a client fails.
    """
    place = RunFolder(Path(folder))
    round, weights = _weights(place, overrides)
    settings = _settings(place, [word for word in overrides if not word.startswith(("round=", "reuse="))])
    made_by = identity.measured(settings) | {"round": round, "version": __version__}
    name = f"{settings['evaluation']['name']}-{identity.digest(made_by)}"
    target = place.path / "evaluations" / name
    if "reuse=false" not in overrides and (known := evidence.read(target)):
        log.warning("%s was measured before (reuse=false measures it again)", target)
        return known
    prepared = prepare(settings)
    if prepared.data != place.summary()["data"]:
        raise InputError(
            f"{place.path} was trained on other data than dataset.root={settings['dataset'].get('root')} has now: "
            "evaluate it where its audio and features are as they were."
        )
    record = _measure(prepared, target, round, weights)
    _track(place, settings, target, record)
    return record


def _measure(prepared, target: Path, round: int, weights: dict) -> dict:
    plan, stop, found = prepared.plan(), threading.Event(), []
    log.warning("%s\n%s", target, plan)

    def serve(grid) -> None:
        federation = prepared.federation(grid, plan, stop, target)
        began = time.monotonic()
        outcome, missing = federation.evaluate(round, weights, agenda.final(prepared.settings))
        if missing:
            raise RunError(f"no answer from {', '.join(missing)}")
        found.append(evidence.write(target, prepared, outcome, round, time.monotonic() - began))

    try:
        with interrupt.listening(stop, plan):
            simulation.simulate(serve, client_app, len(prepared.shares), plan, stop)
    except OSError as error:
        raise disk_error(error, f"The evaluation in {target}") from error
    return found[0]


def _track(place: RunFolder, settings: dict, target: Path, record: dict) -> None:
    """A run of its own on the dashboard, beside the one that trained the model."""
    tracker = config.build(settings["logger"])
    tracker.start(f"{place.path.name}-{target.name}", settings, target, [], job="evaluate")
    tracker.finish(evidence.metrics(record) | {"status": "finished", "round": record["round"]}, record)


def _weights(place: RunFolder, overrides: Sequence[str]) -> tuple[int, dict]:
    """The round to evaluate, by default the last, and the model's weights after it."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    summary = place.summary()
    if summary is None:
        raise InputError(f"{place.path} holds no run (no summary.json): give a run's folder.")
    chosen = [word.partition("=")[2] for word in overrides if word.startswith("round=")]
    if not chosen and summary["status"] != "finished":
        raise InputError(
            f"{place.path} is {summary['status']}, its model is not trained to the end: give the command that made it "
            "once more, or choose one of its evaluated rounds with round=…"
        )
    round = int(chosen[-1]) if chosen and chosen[-1].isdigit() else summary["rounds"]
    file = trained.weights_file(place.path / "weights", round)
    try:
        return round, load_file(file)
    except (OSError, SafetensorError) as error:
        kept = ", ".join(str(int(path.stem.partition("-")[2])) for path in sorted(file.parent.glob("round-*")))
        raise InputError(f"{file} can't be read ({error}). Rounds with weights: {kept or 'none'}.") from error


def _settings(place: RunFolder, overrides: Sequence[str]) -> dict:
    """The run's settings, with the groups of `FROM_THE_COMMAND` as the overrides compose them."""
    for word in overrides:
        name = word.lstrip("+~").partition("=")[0]
        if not name.startswith(GROUPS) and not name.startswith("defence.inference"):
            raise InputError(f"{word}: belongs to the training. fedser-evaluate takes {', '.join(GROUPS)}.")
    try:
        run = OmegaConf.load(place.path / "config.yaml")
    except OSError as error:
        raise InputError(f"{place.path / 'config.yaml'} can't be read: {error}") from error
    composed = config.compose(overrides)
    worn = composed.defence.inference if run.defence.inference is None or _worn(overrides) else run.defence.inference
    OmegaConf.set_struct(composed, False)
    asked = [word.lstrip("+").partition("=")[0].partition(".")[0] for word in overrides]
    for key in run:
        if key not in FROM_THE_COMMAND and not (key == "logger" and key in asked):
            composed[key] = run[key]
    composed.defence.inference = worn
    return config.settle(composed)


def _worn(overrides: Sequence[str]) -> bool:
    return any(word.lstrip("+").startswith(("defence/inference", "defence.inference")) for word in overrides)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code. A run that can't be evaluated does not take the others with it."""
    parser = argparse.ArgumentParser(prog="fedser-evaluate", description=__doc__.split("\n\n")[0])
    parser.add_argument("words", nargs="+", metavar="RUN|KEY=VALUE", help="runs' folders, and overrides as for fedser")
    words = parser.parse_args(argv).words
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    codes = []
    try:
        folders = run_folders([word for word in words if "=" not in word or Path(word).exists()])
        overrides = [word for word in words if "=" in word and not Path(word).exists()]
        for number, folder in enumerate(folders, start=1):
            codes.append(_one(folder, overrides, f"{number}/{len(folders)}"))
    except (Interrupted, KeyboardInterrupt):
        print("fedser-evaluate: stopped; the same command goes on with the runs that are left", file=sys.stderr)
        return 130
    except FedserError as error:
        return _complain(error)
    return max(codes, default=0)


def _one(folder: Path, overrides: Sequence[str], number: str) -> int:
    began = time.monotonic()
    try:
        record = evaluate(folder, overrides)
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
