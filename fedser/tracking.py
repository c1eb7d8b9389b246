"""What a run leaves behind: its folder first, a dashboard second.

The folder is the truth: `history.jsonl` has one flat JSON object per round, `summary.json` every final metric. It
holds nothing that depends on the clock except in `summary.json`, so equal runs have equal histories, byte for byte.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from fedser import cache
from fedser.errors import InputError, RunError

log = logging.getLogger(__name__)
FILES = ("config.yaml", "history.jsonl", "summary.json", "model.safetensors", "evaluation.json")
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


class RunFolder:
    """The files of one run. Raises InputError where it cannot be written, RunError when the disk fills up later."""

    def __init__(self, path: Path):
        self.path = Path(path)

    def summary(self) -> dict | None:
        """What an earlier run left in `summary.json`, or None. Raises InputError when it is not JSON."""
        file = self.path / "summary.json"
        if not file.is_file():
            return None
        try:
            return json.loads(file.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{file} is damaged ({error}): move the folder away or delete it.") from error

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
            except OSError as error:
                raise InputError(
                    f"The cache {cache.folder('locks')} can't be written: {error}. Set FEDSER_CACHE."
                ) from error
            yield

    def claim(self, settings: dict, summary: dict) -> None:
        """Starts a run here: what an earlier one left is moved aside, never overwritten."""
        try:
            if any((self.path / name).exists() for name in FILES):
                self._move_aside()
            self.path.mkdir(parents=True, exist_ok=True)
            self.write("config.yaml", OmegaConf.to_yaml(OmegaConf.create(settings)))
            self.write("summary.json", dumps(summary, indent=2))
            self.write("history.jsonl", "")
        except OSError as error:
            raise InputError(f"The run's folder {self.path} can't be written: {error}. Set hydra.run.dir=…") from error

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
        lines = (self.path / "history.jsonl").read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def write(self, name: str, text: str) -> None:
        """Replaces a file in one step: a reader sees the old or the new one, whole."""
        write_whole(self.path / name, text.encode())

    def _move_aside(self) -> None:
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.old-{number}")).exists():
            number += 1
        self.path.rename(aside)
        log.warning("what an earlier run left in %s is now in %s", self.path, aside.name)


def write_whole(file: Path, content: bytes) -> None:
    """Replaces a file in one step: a reader sees the old or the new one. Raises OSError."""
    scratch = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        scratch.write_bytes(content)
        scratch.replace(file)
    finally:
        scratch.unlink(missing_ok=True)


def dumps(value, indent: int | None = None) -> str:
    """Strict JSON: NaN (a recall without test utterances) becomes null."""
    return json.dumps(_strict(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _strict(value):
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


class Tracker:
    """A dashboard, and the one that shows nothing (`logger=none`). Called in this order: start, log…, finish."""

    def __init__(self, name: str = "none", **_):
        self.name = name

    def start(self, run_name: str, settings: dict, folder: Path, history: list[dict], job: str = "train") -> None:
        """A run begins, or goes on after `history`; `settings` are the plain values of its configuration."""

    def log(self, row: dict) -> None:
        """One row of the history."""

    def finish(self, summary: dict, record: dict | None) -> None:
        """The run has ended with this status; `record` is its `evaluation.json`, None where it did not finish."""


class Wandb(Tracker):
    """Weights & Biases: the history's curves against `round`, confusion matrices and the final table.

    Online when a key is configured, otherwise offline without asking. One W&B run per job: it is finished before the
    next one starts (several Hydra jobs would merge into one otherwise). A run that is taken up again keeps its W&B id
    and is told its history once more, each row with its round as W&B's step: online, W&B passes over the steps that it
    has; offline, where it can't resume, the new record is whole and the earlier one is moved to `wandb/replaced-N`.
    """

    def __init__(self, project, entity=None, group=None, tags=(), mode=None, name="wandb"):
        super().__init__(name)
        self.options = {"project": project, "entity": entity, "group": group, "tags": list(dict.fromkeys(tags))}
        self.mode = mode
        self.run = None

    def start(self, run_name: str, settings: dict, folder: Path, history: list[dict], job: str = "train") -> None:
        """Starts W&B's run in `folder`, offline where it can't be reached."""
        import wandb

        mode = self.mode or _mode()
        options = self.options | {
            "name": run_name,
            "id": _run_id(folder / "wandb"),
            "dir": folder,
            "job_type": job,
            "config": flattened({key: value for key, value in settings.items() if key not in ("logger", "attacks")}),
            "settings": wandb.Settings(silent=True, console="off", x_disable_stats=True, init_timeout=30),
        }
        try:
            self.run = wandb.init(mode=mode, resume="allow" if mode == "online" else None, **options)
        except wandb.errors.Error as error:
            if mode != "online":
                raise
            # A key without a network must not cost the run; `wandb sync` uploads it later.
            log.warning("W&B can't be reached (%s): this run is recorded offline", str(error).splitlines()[0])
            self.run = wandb.init(mode="offline", **options)
        self.folder = folder
        self.run.define_metric("round")
        self.run.define_metric("*", step_metric="round")
        for row in history:
            self.log(row)

    def log(self, row: dict) -> None:
        values = {key: value for key, value in row.items() if not isinstance(value, list)}
        self.run.log(values, step=row["round"], commit=True)

    def finish(self, summary: dict, record: dict | None) -> None:
        """Logs confusion matrices and the final table; a run that did not finish exits with 1 and shows as failed."""
        if self.run is None:
            return
        finished = summary["status"] == "finished"
        if record:  # the steps after the last round are taken by these, and a run may yet go on
            self._final(record)
        self.run.summary.update(json.loads(dumps(summary)))
        self.run.finish(exit_code=0 if finished else 1)
        self.run = None

    def _final(self, record: dict) -> None:
        import wandb

        classes = record["classes"]
        for condition, measured in record["conditions"].items():
            pairs = np.repeat(np.indices((len(classes), len(classes))).reshape(2, -1), np.ravel(measured["matrix"]), 1)
            plot = wandb.plot.confusion_matrix(
                y_true=pairs[0].tolist(), preds=pairs[1].tolist(), class_names=classes, title=condition
            )
            self.run.log({f"confusion/{condition}": plot})
        conditions = [{"condition": name} | measured for name, measured in record["conditions"].items()]
        for table, columns, rows in (
            ("uar", ["condition", "uar", "uar_sd", "draws"], conditions),
            ("flags", ["flag", "status", "title", "detail"], record["flags"]),
        ):
            self.run.log({table: wandb.Table(columns=columns, data=[[row[c] for c in columns] for row in rows])})
        if (file := self.folder / "example.npz").is_file():
            with np.load(file) as arrays:
                images = {
                    f"example/{name}": wandb.Image(picture(arrays[name]), caption=name)
                    for name in arrays
                    if arrays[name].ndim == 2
                }
            self.run.log(images)


def flattened(settings: dict) -> dict:
    """The configuration as a dashboard filters by it: each group's option under the group's name, keys dotted.

    {"attack": {"name": "pgd", "eps": 0.05}} → {"attack": "pgd", "attack.eps": 0.05}.
    """
    flat = {}
    for key, value in settings.items():
        if not isinstance(value, dict):
            flat[key] = value
            continue
        if "name" in value:
            flat[key] = value["name"]
        flat |= {f"{key}.{inner}": part for inner, part in flattened(value).items() if inner != "name"}
    return flat


def picture(values: np.ndarray) -> np.ndarray:
    """A spectrogram [frames, mels] as an image [mels, frames, 3], low bands below, on a scale of its own."""
    from matplotlib import colormaps

    scaled = (values - values.min()) / max(float(np.ptp(values)), 1e-12)
    return (255 * colormaps["magma"](scaled.T[::-1])[..., :3]).astype(np.uint8)


def _run_id(folder: Path) -> str:
    """The W&B id of the run in this folder, the same when it is taken up again; earlier offline records give way."""
    file = folder / "run-id"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(secrets.token_hex(4))
    earlier = list(folder.glob("offline-run-*"))
    if earlier:
        number = 1
        while (aside := folder / f"replaced-{number}").exists():
            number += 1
        aside.mkdir()
        for record in earlier:
            record.rename(aside / record.name)
    return file.read_text().strip()


def _mode() -> str:
    """`online` where a key is at hand; left to itself, W&B would stop and ask."""
    import wandb

    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    return "online" if wandb.login(prompt=False, verify=False) else "offline"


def disk_error(error: OSError, doing: str) -> RunError:
    """An OSError while the run was under way, as the user should read it."""
    return RunError(f"{doing} failed: {error}. Free some space or move the folder with hydra.run.dir=…")
