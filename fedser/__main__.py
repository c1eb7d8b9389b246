"""The command line: Hydra composes, fedser runs, errors leave by one door.

Exit codes: 0 done, 1 a run failed, 2 bad input or configuration, 130 interrupted.
"""

import logging
import os
import sys
import traceback
from pathlib import Path

from fedser.errors import FedserError, Interrupted


def main() -> None:
    """Entry point of `fedser` and `python -m fedser`."""
    # Hydra would print a traceback or exit 1 for everything; with this, exceptions reach us.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    sys.path.append(os.getcwd())  # modules of the user's own
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    sys.exit(_run_hydra())


def _run_hydra() -> int:
    import hydra

    from fedser.config import compose, paths

    codes: list[int] = []

    @hydra.main(version_base="1.3", config_path=str(paths.directory()), config_name="config")
    def job(config) -> None:
        codes.append(_job(config))

    words = sys.argv[1:]
    try:
        folders = compose.folders_of(words, _config_dir(words))
        sys.argv[1:] = compose.prepared(words, folders)
        job()
    except KeyboardInterrupt:
        return 130
    except compose.COMPLAINTS as error:
        return _complain(compose.explain(error, [word for word in words if "=" in word], folders), 2)
    except FedserError as error:
        return _complain(str(error), error.exit_code)
    except OSError as error:
        return _complain(f"The run's folder can't be made: {error}. Set hydra.run.dir=…", 2)
    return max(codes, default=0)


def _config_dir(words: list[str]) -> str | None:
    """The value of Hydra's --config-dir."""
    for place, word in enumerate(words):
        flag, _, value = word.partition("=")
        if flag in ("--config-dir", "-cd"):
            return value or (words[place + 1] if place + 1 < len(words) else None)
    return None


def _job(config) -> int:
    """One run; a failing one gives its exit code and does not take the rest of a sweep with it."""
    from hydra.core.hydra_config import HydraConfig

    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        from fedser.experiment import run

        run(config, folder)
        return 0
    except (Interrupted, KeyboardInterrupt) as error:
        _complain(str(error) or "Interrupted before the first round; the same command starts again.", 130)
        _remove_if_empty(folder)
        raise KeyboardInterrupt from error  # ends a sweep too
    except FedserError as error:
        _remove_if_empty(folder)
        return _complain(str(error), error.exit_code)
    except Exception as error:
        traceback.print_exc()
        _remove_if_empty(folder)
        return _complain(f"{type(error).__name__}: {error} (this is a defect of fedser: please report it)", 1)


def _complain(message: str, code: int) -> int:
    print(f"fedser: {message}", file=sys.stderr)
    return code


def _remove_if_empty(folder: Path) -> None:
    # Hydra makes the run's folder before fedser has looked at the configuration.
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


if __name__ == "__main__":
    main()
