"""The folder of a run: the truth about it.

`history.jsonl` has one flat JSON object per round, `summary.json` every final metric. Nothing in it depends on the
clock except `summary.json`, so equal runs have equal histories, byte for byte.
"""

import contextlib
import hashlib
import itertools
import json
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fedser.errors import InputError
from fedser.runs import cache
from fedser.runs.files import dumps, read_json, write_whole

log = logging.getLogger(__name__)
FILES = ("config.yaml", "history.jsonl", "summary.json", "model.safetensors", "evaluation.json")
PARTS = "parts"  # the folder of an evaluation under way
SETTINGS = ("dataset", "partition", "strategy")  # by which a config.yaml is known for a run's


def run_folders(paths: Iterable[str | Path]) -> list[Path]:
    """The folders of runs at or below these, in the order given, none twice.

    A run that has lost its `summary.json` is one too. Raises InputError for a path that holds no run. What a newer run
    moved aside counts where its own path is given.
    """
    return list({folder.resolve(): folder for path in paths for folder in _below(Path(path))}.values())


def _below(path: Path) -> list[Path]:
    if not path.exists():
        raise InputError(f"{path}: no such folder")
    if not path.is_dir():
        raise InputError(f"{path}: is a file; give the run's folder")
    if (path / "summary.json").is_file():
        return [path]
    found = [Path(folder) for folder, _, files in os.walk(path) if set(FILES) & set(files)]
    found = [folder for folder in found if _is_run(folder)]
    if not found:
        raise InputError(f"{path}: holds no run (no summary.json in it or below it)")
    current = [folder for folder in found if not re.search(r"\.old-\d+$", folder.name)]
    # Hydra numbers the jobs of a sweep 0, 1, …, 10: in that order, not 0, 1, 10, 2.
    return sorted(current or found, key=lambda folder: re.sub(r"\d+", lambda n: n[0].zfill(12), str(folder)))


def _is_run(folder: Path) -> bool:
    """Whether this is a run's folder, though its summary may be lost, and not one inside of it: `evaluations/*`."""
    if (folder / "summary.json").is_file():
        return True
    return _of_a_run(folder) and not any(map(_of_a_run, folder.absolute().parents[:3]))


def _of_a_run(folder: Path) -> bool:
    """Whether a run's files lie here. A model in the cache has a history too, but its weights beside it."""
    if any((folder / name).is_file() for name in ("summary.json", "evaluation.json")):
        return True
    if (folder / "history.jsonl").is_file():
        return not any(folder.glob("round-*.safetensors"))
    try:
        text = (folder / "config.yaml").read_text(errors="replace")
    except OSError:
        return False
    return all(re.search(f"^{key}:", text, re.MULTILINE) for key in SETTINGS)


def weights_file(folder: Path, round: int | None) -> Path:
    """Where the weights after `round` are in a folder of weights: a run's, or a model's in the cache.

    None: the last round's before averaging and selection, where these make a difference.
    """
    return folder / ("raw.safetensors" if round is None else f"round-{round:05d}.safetensors")


class RunFolder:
    """The files of one run. Raises InputError where it cannot be written, RunError when the disk fills up later."""

    def __init__(self, path: Path):
        self.path = Path(path)

    def summary(self) -> dict | None:
        """What an earlier run left in `summary.json`, or None. Raises InputError when it is not JSON."""
        return read_json(self.path / "summary.json")

    def config(self) -> DictConfig:
        """The run's resolved configuration. Raises InputError where it is missing or damaged."""
        file = self.path / "config.yaml"
        try:
            config = OmegaConf.load(file)
        except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
            raise InputError(f"{file} can't be read: {' '.join(str(error).split())}") from error
        if not isinstance(config, DictConfig):
            raise InputError(f"{file} can't be read: it holds no settings")
        return config

    def weights(self, round: int) -> dict[str, np.ndarray]:
        """The packed weights after a round that was evaluated. Raises InputError naming those that there are."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        file = weights_file(self.path / "weights", round)
        try:
            return load_file(file)
        except (OSError, SafetensorError) as error:
            kept = ", ".join(str(int(path.stem.partition("-")[2])) for path in sorted(file.parent.glob("round-*")))
            raise InputError(f"{file} can't be read ({error}). Rounds with weights: {kept or 'none'}.") from error

    def evaluations(self) -> list[Path]:
        """The folders that hold a record of an evaluation (see `fedser.evaluation.record`): the run's own first."""
        folders = [self.path, *sorted((self.path / "evaluations").glob("*"))]
        return [folder for folder in folders if (folder / "evaluation.json").is_file()]

    @contextlib.contextmanager
    def locked(self):
        """Holds the folder for one process; the kernel lets go when it dies. Raises InputError when it is taken.

        The lock lies in the cache and not in the folder, which may be moved aside meanwhile.
        """
        name = hashlib.blake2b(str(self.path.absolute()).encode(), digest_size=8).hexdigest()
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(cache.lock(cache.folder("locks", name)))
            except BlockingIOError as error:
                raise InputError(
                    f"Another fedser is at work in {self.path}: wait for it, or set hydra.run.dir=…"
                ) from error
            yield

    def claim(self, settings: dict, summary: dict) -> None:
        """Starts a run here: what an earlier one left is moved aside, never overwritten."""
        try:
            if any((self.path / name).exists() for name in FILES):
                self._move_aside()
            self.path.mkdir(parents=True, exist_ok=True)
            self.write("config.yaml", OmegaConf.to_yaml(OmegaConf.create(settings)))
        except OSError as error:
            raise InputError(f"The run's folder {self.path} can't be written: {error}. Set hydra.run.dir=…") from error
        self.resume([], summary)

    def resume(self, history: list[dict], summary: dict) -> None:
        """Goes on where a checkpoint was: rows of later rounds, which will come again, are dropped."""
        try:
            self.write("history.jsonl", "".join(dumps(row) + "\n" for row in history))
            self.write("summary.json", dumps(summary, indent=2))
        except OSError as error:
            raise InputError(f"The run's folder {self.path} can't be written: {error}. Set hydra.run.dir=…") from error

    def append(self, row: dict) -> None:
        """One round more in `history.jsonl`."""
        with (self.path / "history.jsonl").open("a") as file:
            file.write(dumps(row) + "\n")

    def history(self) -> list[dict]:
        """The rows of `history.jsonl`, but for a last one that a full disk cut off."""
        file = self.path / "history.jsonl"
        try:
            lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
            return [json.loads(line) for line in lines if line.endswith("\n")]
        except (OSError, ValueError) as error:
            raise InputError(f"{file} can't be read: {error}") from error

    def write(self, name: str, text: str) -> None:
        """Replaces a file in one step: a reader sees the old or the new one, whole."""
        write_whole(self.path / name, text.encode())

    def _move_aside(self) -> None:
        names = (self.path.with_name(f"{self.path.name}.old-{number}") for number in itertools.count(1))
        aside = self.path.rename(next(name for name in names if not name.exists()))
        if (aside / PARTS).is_dir():  # an evaluation that was interrupted: it says itself of which model it is
            self.path.mkdir()
            (aside / PARTS).rename(self.path / PARTS)
        log.warning("what an earlier run left in %s is now in %s", self.path, aside.name)
