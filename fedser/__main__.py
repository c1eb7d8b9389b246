"""The command line: Hydra composes, fedser runs, errors leave by one door.

Exit codes: 0 done, 1 a run failed, 2 bad input or configuration, 130 interrupted.
"""

import contextlib
import gc
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from fedser import __version__
from fedser.errors import FedserError, Interrupted

BROKEN_PIPE = 141  # as a shell reports a process that SIGPIPE ended
_starter: int | None = None  # the process in which the command was given, where its sweep is seen from
_failures: list["Failure"] = []


def main() -> NoReturn:
    """Entry point of `fedser` and `python -m fedser`."""
    _leave("fedser", _hydra)


def evaluate() -> NoReturn:
    """Entry point of `fedser-evaluate`."""
    _leave("fedser-evaluate", lambda: importlib.import_module("fedser.evaluate").main())


def predict() -> NoReturn:
    """Entry point of `fedser-predict`."""
    _leave("fedser-predict", lambda: importlib.import_module("fedser.predict").main())


def listen() -> NoReturn:
    """Entry point of `fedser-listen`."""
    _leave("fedser-listen", lambda: importlib.import_module("fedser.listen").main())


def client() -> NoReturn:
    """Entry point of `fedser-client`."""
    _leave("fedser-client", lambda: importlib.import_module("fedser.deployment.client").main())


def privacy() -> NoReturn:
    """Entry point of `fedser-privacy`."""
    _leave("fedser-privacy", lambda: importlib.import_module("fedser.privacy").main())


def report() -> NoReturn:
    """Entry point of `fedser-report`."""
    _leave("fedser-report", lambda: importlib.import_module("fedser.report").main())


def _leave(program: str, command: Callable[[], int]) -> NoReturn:
    """Ends the process with the command's exit code; quietly where nobody reads its output any more (`| head`)."""
    try:
        if sys.argv[1:] == ["--version"]:
            print(f"{program} {__version__}")
            code = 0
        else:
            code = _code_of(command)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        code = BROKEN_PIPE
    sys.exit(code)


def _code_of(command: Callable[[], int]) -> int:
    """The command's exit code, also where argparse leaves by itself (--help, a wrong option)."""
    try:
        return command()
    except SystemExit as leaving:
        return leaving.code


class Failure(float):
    """What a job that failed returns to a sweeper: not a number, with the job's message and exit code.

    It can't be cast to a plain float: by that Optuna's sweeper knows a failed trial, and a NaN would end it. Where the
    sweep was started it is reported, and counts for the exit code: when it is made, or when it arrives from another
    process, by whatever launcher.
    """

    message: str
    code: int

    def __new__(cls, message: str, code: int) -> "Failure":
        failure = super().__new__(cls, "nan")
        failure.message, failure.code = message, code
        if os.getpid() == _starter:
            _failures.append(failure)
            _complain(message, code)
        return failure

    def __reduce__(self):
        return Failure, (self.message, self.code)

    def __float__(self) -> float:
        raise ValueError(self.message)


def job(config) -> float | None:
    """One run, for Hydra: its `optimized_metric`, None where it has none. A failing one does not take the rest of a
    sweep with it, and returns a `Failure`."""
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    name = f"job {hydra.job.num} ({folder.name}): " if hydra.mode.name == "MULTIRUN" else ""
    _prepare_process()
    from fedser.simulation import ray_cluster

    try:
        with ray_cluster.ahead(config.get("simulation"), folder):
            from fedser.config import sweeps, validation

            settings = validation.validate(config)  # before what runs it is imported: a wrong number is refused at once
            sweeps.check(settings, hydra)
            from fedser.experiment import run

            gc.enable()
            return sweeps.figure(settings, run(settings, folder).metrics)
    except (Interrupted, KeyboardInterrupt) as error:
        failure = Failure(str(error) or "Interrupted before the first round; the same command starts again.", 130)
        if os.getpid() == _starter:
            raise KeyboardInterrupt from error  # ends a sweep too
        return failure  # a launcher would make a traceback of it; whoever pressed Ctrl-C interrupted the starter too
    except FedserError as error:
        return Failure(f"{name}{error}", error.exit_code)
    except Exception as error:
        defect = f"{type(error).__name__}: {error} (this is a defect of fedser: please report it)"
        return Failure(f"{name}{defect}\n{traceback.format_exc()}", 1)
    finally:
        gc.enable()
        with contextlib.suppress(OSError):  # where it is empty: Hydra makes it before the configuration is looked at
            folder.rmdir()


def _prepare_process() -> None:
    """What every process needs in which a job runs: a launcher may have started it."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    sys.path.append(os.getcwd())  # modules of the user's own
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)


def _hydra() -> int:
    import hydra

    from fedser.config import compose, paths

    global _starter
    _starter = os.getpid()
    _failures.clear()
    gc.disable()  # until all is imported: it would look through that again and again, a sixth of the time
    # Hydra would print a traceback or exit 1 for everything; with this, exceptions reach us.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    _prepare_process()
    words, folders = [*_being_completed(sys.argv[1:]), *sys.argv[1:]], ()
    overrides = [word for word in words if word.startswith("~") or ("=" in word and not word.startswith("-"))]
    try:
        if {"-h", "--help"} & set(words):
            print(compose.help_text(overrides, _config_dir(words)))
            return 0
        folders = compose.folders_of(words, _config_dir(words))
        sys.argv[1:] = compose.prepared(words, folders)
        # Not as a decorator: the job would not be found under its name by the processes of a launcher.
        hydra.main(version_base="1.3", config_path=str(paths.directory()), config_name="config")(job)()
    except KeyboardInterrupt:
        if all(failure.code != 130 for failure in _failures):  # the jobs of a launcher had no time to answer
            _complain("Interrupted; the same command goes on where its runs stopped.", 130)
        return 130
    except compose.COMPLAINTS as error:
        return _complain(compose.explain(error, overrides, folders), 2)
    except FedserError as error:
        return _complain(str(error), error.exit_code)
    except BrokenPipeError:
        raise
    except OSError as error:
        return _complain(f"The run's folder can't be made: {error}. Set hydra.run.dir=…", 2)
    return max((failure.code for failure in _failures), default=0)


def _config_dir(words: list[str]) -> str | None:
    """The value of Hydra's --config-dir."""
    for place, word in enumerate(words):
        flag, _, value = word.partition("=")
        if flag in ("--config-dir", "-cd"):
            return value or (words[place + 1] if place + 1 < len(words) else None)
    return None


def _being_completed(words: list[str]) -> list[str]:
    """The --config-dir of the line that a shell asks to have completed: Hydra looks into no other folder than ours."""
    asked = {"-sc", "--shell-completion"} & set(words)
    folder = _config_dir(os.environ.get("COMP_LINE", "").split()) if asked else None
    return [f"--config-dir={os.path.expanduser(folder)}"] if folder and Path(folder).expanduser().is_dir() else []


def _complain(message: str, code: int) -> int:
    print(f"fedser: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    from fedser.__main__ import main as of_the_package  # whose `job` other processes can import

    of_the_package()
