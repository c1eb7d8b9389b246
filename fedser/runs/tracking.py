"""Dashboards. The run's folder is the truth; they show it."""

import itertools
import json
import logging
import os
import re
import secrets
from pathlib import Path

import numpy as np

from fedser.runs.files import dumps

log = logging.getLogger(__name__)
HASH = r"-[0-9a-f]{16}(?=-|$)"  # in a run's name: it says nothing to people


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
            "name": re.sub(HASH, "", run_name),
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

    {"attack": {"name": "pgd", "eps": 0.05}} → {"attack": "pgd", "attack.eps": 0.05}. What is Hydra's own (`_target_`)
    is left out.
    """
    flat = {}
    for key, value in settings.items():
        if key.startswith("_"):
            continue
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
    if earlier := list(folder.glob("offline-run-*")):
        names = (folder / f"replaced-{number}" for number in itertools.count(1))
        aside = next(name for name in names if not name.exists())
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
