"""The run's files and W&B's offline record of the same curves."""

import json

import numpy as np
import pytest
import wandb

from fedser.errors import InputError
from fedser.runs.files import dumps
from fedser.runs.folder import RunFolder
from fedser.runs.tracking import flattened, picture


def test_json_is_strict():
    assert json.loads(dumps({"a": float("nan"), "b": np.float32(0.5), "c": np.arange(2), "d": [np.int64(1)]})) == {
        "a": None, "b": 0.5, "c": [0, 1], "d": [1],
    }  # fmt: skip


def test_earlier_files_are_moved_aside(tmp_path):
    folder = RunFolder(tmp_path / "run")
    for number in range(3):
        folder.claim({"seed": number}, {"status": "running"})
        folder.append({"round": number})
    assert folder.history() == [{"round": 2}]
    assert RunFolder(tmp_path / "run.old-1").history() == [{"round": 0}]
    assert RunFolder(tmp_path / "run.old-2").history() == [{"round": 1}]


def test_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/run can't be written"):
        RunFolder(tmp_path / "file" / "run").claim({}, {})


def test_damaged_summary_is_named(tmp_path):
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(InputError, match=r"summary\.json is damaged"):
        RunFolder(tmp_path).summary()


@pytest.mark.parametrize(
    ("name", "content", "read"),
    [
        ("config.yaml", "a: [", lambda folder: folder.config()),
        ("config.yaml", "- a", lambda folder: folder.config()),
        ("config.yaml", None, lambda folder: folder.config()),
        ("history.jsonl", "{\n", lambda folder: folder.history()),
        ("history.jsonl", None, lambda folder: folder.history()),
        ("weights/round-00002.safetensors", "no tensors", lambda folder: folder.weights(2)),
    ],
)
def test_what_is_missing_or_damaged_in_a_runs_folder_is_named(tmp_path, name, content, read):
    (tmp_path / "weights").mkdir()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(
        InputError, match=f"^{tmp_path / name} can't be read: [^\n]*$|^{tmp_path / name} can't be read \\("
    ):
        read(RunFolder(tmp_path))


def test_records_of_a_run_its_own_first(tmp_path):
    for folder in ("evaluations/b", "evaluations/a", "evaluations/under-way", "."):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        if folder != "evaluations/under-way":
            (tmp_path / folder / "evaluation.json").write_text("{}")
    found = RunFolder(tmp_path).evaluations()
    assert found == [tmp_path, tmp_path / "evaluations/a", tmp_path / "evaluations/b"]


def records(folder):
    """Every record of W&B's offline file: LevelDB's log format (blocks of 32 KiB) behind a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    data, at, payload = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # the rest of a block is too short for a header: padding
            at += 32768 - at % 32768
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        payload += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            record = Record()
            record.ParseFromString(payload)
            payload = b""
            yield record


def test_wandb_offline_gets_the_same_curves(small):
    result = small("logger=wandb", "seed=3", "evaluation.every=1")
    wandb.teardown()
    logged, run, exits, metrics = [], None, [], []
    for record in records(result.folder):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            logged.append(
                {i.nested_key[0] if i.nested_key else i.key: json.loads(i.value_json) for i in record.history.item}
            )
        elif kind == "run":
            run = record.run
            configured = {item.key: json.loads(item.value_json) for item in run.config.update}
        elif kind == "exit":
            exits.append(record.exit.exit_code)
        elif kind == "metric":
            metrics.append((record.metric.name or record.metric.glob_name, record.metric.step_metric))
    curves = [{key: row[key] for key in row if key == "round" or key.startswith(("uar/", "train/"))} for row in logged]
    for row, curve in zip(result.history, [c for c in curves if "train/loss" in c], strict=True):
        assert {key: value for key, value in row.items() if key in curve} == pytest.approx(curve)
        assert "uar/randomised_adversarial/fgsm" in curve
    assert any("confusion/original" in key for row in logged for key in row)
    assert {"uar", "flags", "example/x", "example/delta/fgsm"} <= {key for row in logged for key in row}
    assert configured["attack"] == "fgsm" and configured["attack.eps"] == 0.05 and configured["seed"] == 3
    assert run.job_type == "train"
    assert exits == [0] and ("*", "round") in metrics
    assert (
        run.run_group == "emodb-cnn4"
        and "attack:fgsm" in run.tags
        and run.display_name == "emodb-cnn4-fgsm0.05-randomise-seed3"
    )


def test_settings_are_flattened_by_group():
    assert flattened({"seed": 1, "attack": {"_target_": "x.Y", "name": "pgd", "eps": 0.05, "method": {"_target_": "x.Z", "steps": 2}}, "partition": {"a": {}}}) == {
        "seed": 1, "attack": "pgd", "attack.eps": 0.05, "attack.method.steps": 2,
    }  # fmt: skip


def test_a_picture_has_low_bands_below():
    image = picture(np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]))
    assert image.shape == (2, 3, 3)
    assert image[0].sum() > image[1].sum()


def test_failed_run_is_marked_failed_on_wandb(small, tmp_path):
    from fedser.errors import RunError

    with pytest.raises(RunError):
        small("logger=wandb", "seed=4", "client.lr=1e30", "client.epochs=3")
    wandb.teardown()  # W&B's own process writes the last record, a moment after `finish` on a busy machine
    exits = [
        record.exit.exit_code for record in records(tmp_path / "run") if record.WhichOneof("record_type") == "exit"
    ]
    assert exits == [1]


@pytest.mark.parametrize(
    ("root", "group"),
    [
        ("clips/berlin.csv", "berlin-statcnn"),
        ("my-corpus/manifest.csv", "my-corpus-statcnn"),
        (None, "manifest-statcnn"),
    ],
)
def test_wandb_groups_by_the_corpus(root, group):
    from fedser import compose

    config = compose(["dataset=manifest", f"dataset.root={root or 'null'}", "logger=wandb"])
    assert config.logger.group == group and config.logger.tags[0] == group.removesuffix("-statcnn")
