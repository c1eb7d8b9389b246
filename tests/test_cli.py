"""The command line as users meet it: exit codes, messages, sweeps, Ctrl-C; as processes where that is the point."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SMALL
from processes import rounds, start, until

QUICK = [*SMALL, "defence=none", "attack=none"]


def only_folder(path: Path) -> Path:
    (folder,) = [item for item in (path / "outputs").iterdir() if item.is_dir()]
    return folder


def test_help_lists_groups_and_loads_nothing_heavy(tmp_path):
    program = (
        "import sys; sys.argv = ['fedser', '--help']\n"
        "from fedser.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('heavy:', sorted({'torch', 'flwr', 'ray', 'wandb', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "heavy: []" in done.stdout
    for word in ("attack", "deepfool", "defence", "two_stage", "strategy", "krum", "experiment", "chang2022"):
        assert word in done.stdout


def test_run_from_an_empty_folder(cli, command, tmp_path):
    done = cli(*QUICK)
    assert done.returncode == 0, done.stderr
    folder = only_folder(tmp_path)
    assert "UAR [%]" in done.stdout and "original" in done.stdout and "2 rounds, 2 clients" in done.stdout
    assert json.loads((folder / "summary.json").read_text())["status"] == "finished"
    assert not list(tmp_path.glob("**/.hydra")) and not list(tmp_path.glob("**/*.log"))
    again = command(*QUICK)
    assert again.returncode == 0 and "had finished before" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["attck=fgsm"], r"'attck'.*'attack'"),
        (["attack=fgms"], r"no option 'fgms'.*attack=fgsm"),
        (["rounds=0"], r"rounds=0 must be a whole number"),
        (["attack.eps=0"], r"attack\.eps=0 must be greater than 0"),
        (["dataset=emodb", "dataset.root=nowhere"], r"nowhere.*dataset\.root"),
        (["rounds="], r"rounds"),
        (["simulation=gpu", "simulation.num_gpus=64", "dataset=emodb", SMALL[1]], r"num_gpus=64.*has \d+ GPUs"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_exits_2_in_one_line_and_leaves_nothing(command, tmp_path, arguments, message):
    done = command(*arguments)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("fedser:")]
    assert len(lines) == 1 and re.search(message, lines[0]), done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "outputs").glob("*")) if (tmp_path / "outputs").exists() else True


def test_a_process_exits_with_that_code(cli):
    done = cli("attck=fgsm")
    assert done.returncode == 2 and done.stderr.startswith("fedser: ") and not done.stdout


def test_another_runs_folder_exits_2(command, tmp_path):
    assert command(*QUICK, "hydra.run.dir=here").returncode == 0
    before = {path: path.read_bytes() for path in (tmp_path / "here").rglob("*") if path.is_file()}
    done = command(*QUICK, "seed=1", "hydra.run.dir=here")
    assert done.returncode == 2 and "another configuration" in done.stderr
    assert {path: path.read_bytes() for path in (tmp_path / "here").rglob("*") if path.is_file()} == before


def test_unwritable_folder_exits_2(command, tmp_path):
    (tmp_path / "file").write_text("")
    done = command(*QUICK, "hydra.run.dir=file/run")
    assert done.returncode == 2 and "file/run" in done.stderr and "hydra.run.dir" in done.stderr


def test_full_disk_fails_the_run_and_says_so(small, tmp_path):
    """A limit on file size stands in for a full disk: the kernel refuses the write the same way."""
    small("defence=none", "attack=none")  # features are in the cache now
    limited = f"ulimit -f 16; exec {sys.executable} -m fedser {' '.join(QUICK)} seed=5 model.width=4 hydra.run.dir=full"
    done = subprocess.run(["bash", "-c", limited], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    assert "too large" in done.stderr and "Free some space" in done.stderr
    summary = json.loads((tmp_path / "full/summary.json").read_text())
    assert summary["status"] == "failed"


def test_sweep_runs_every_job_and_a_bad_one_does_not_stop_it(command, tmp_path):
    few = [*SMALL, "rounds=1", "features.frames=32", "evaluation.draws=2"]
    done = command("-m", *few, "attack=fgsm,none", "attack.eps=0.05,0.1", "defence=none,two_stage")
    statuses = [json.loads(path.read_text())["status"] for path in (tmp_path / "outputs").glob("*/summary.json")]
    # fgsm × 2 ε × 2 defences work; attack=none can be tested without a defence but not trained against.
    assert statuses == ["finished"] * 5  # `none` has no ε: both its ε are the same run
    assert done.returncode == 2
    assert done.stderr.count("attack=none is no attack to train against") == 2
    assert done.stdout.count("UAR [%]") == 6


@pytest.mark.parametrize("simulation", ["serial", pytest.param("cpu", marks=pytest.mark.ray)])
def test_ctrl_c_finishes_cleanly(tmp_path, simulation):
    process = start(tmp_path, *QUICK, "rounds=500", f"simulation={simulation}", "hydra.run.dir=run")
    until(lambda: rounds(tmp_path / "run") >= 2, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    rows = (tmp_path / "run/history.jsonl").read_text().splitlines()
    assert summary["status"] == "interrupted" and summary["rounds"] == len(rows)
    assert all(json.loads(row)["round"] == number for number, row in enumerate(rows, 1))
    assert "The same command" in errors and "Traceback" not in errors


@pytest.mark.ray
def test_second_ctrl_c_ends_clients_that_hang(tmp_path):
    marks = tmp_path / "marks"
    hang = ["client.optimizer._target_=faults.adam", f"+client.optimizer.marks={marks}", "+client.optimizer.at=0",
            "+client.optimizer.fault=hang"]  # fmt: skip
    process = start(tmp_path, *QUICK, *hang, "simulation=cpu", "hydra.run.dir=run")
    until(lambda: marks.exists() and marks.stat().st_size == 3, process)  # the check before the run, and two clients
    os.killpg(process.pid, signal.SIGINT)
    errors = ""
    while "Ctrl-C again ends them" not in errors:
        line = process.stderr.readline()
        assert line, errors
        errors += line
    os.killpg(process.pid, signal.SIGINT)
    errors += process.communicate(timeout=60)[1]
    assert process.returncode == 130, errors
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "interrupted"
    assert "Traceback" not in errors


def test_bad_audio_is_named_or_skipped(command, tmp_path):
    import shutil

    import numpy as np
    import soundfile

    shutil.copytree(SMALL[1].split("=")[1], tmp_path / "emodb")
    clips = sorted((tmp_path / "emodb/wav").glob("*.flac"))
    clips[0].write_bytes(b"not audio")
    soundfile.write(clips[1], np.zeros(16000, np.float32), 16000)
    arguments = [item for item in QUICK if not item.startswith("dataset.root")] + ["dataset.root=emodb"]
    refused = command(*arguments)
    assert refused.returncode == 2
    assert clips[0].name in refused.stderr and clips[1].name in refused.stderr and "on_bad_audio=skip" in refused.stderr
    skipped = command(*arguments, "dataset.on_bad_audio=skip")
    assert skipped.returncode == 0, skipped.stderr
    assert "2 clips left out" in skipped.stderr
    assert json.loads((only_folder(tmp_path) / "summary.json").read_text())["utterances"] == len(clips) - 2


def test_each_job_of_a_sweep_is_a_wandb_run_of_its_own(command, tmp_path):
    import wandb
    from test_tracking import records

    arguments = [item for item in SMALL if item != "logger=none"]
    done = command("-m", *arguments, "attack=fgsm,pgd", "defence=none", "rounds=1")
    wandb.teardown()
    assert done.returncode == 0, done.stderr
    folders = sorted(item for item in (tmp_path / "outputs").iterdir() if item.is_dir())
    runs = [
        [record.run for record in records(folder) if record.WhichOneof("record_type") == "run"] for folder in folders
    ]
    assert [len(found) for found in runs] == [1, 1]
    first, second = (found[0] for found in runs)
    assert first.run_id != second.run_id and first.run_group == second.run_group
    assert [first.display_name, second.display_name] == [folder.name.rpartition("-")[0] for folder in folders]
    for folder, attack in zip(folders, ("fgsm", "pgd"), strict=True):
        keys = {key for record in records(folder) for item in record.history.item for key in item.nested_key}
        assert f"uar/adversarial/{attack}" in keys and len([k for k in keys if k.startswith("uar/adversarial/")]) == 1


def test_flags_may_stand_among_overrides(command, tmp_path):
    from fedser.config.compose import prepared

    words = ["rounds=2", "-m", "hydra/launcher=joblib", "--config-dir", "a=b", "~augment", "+x=1", "--cfg", "job"]
    assert prepared(words) == [
        "-m",
        "--config-dir",
        "a=b",
        "--cfg",
        "job",
        "rounds=2",
        "hydra/launcher=joblib",
        "~augment",
        "+x=1",
    ]
    assert prepared(["a=1", "-cd", "d", "b=2"], ["/d"]) == ["-cd", "d", "modules=[/d]", "a=1", "b=2"]
    (tmp_path / "mine").mkdir()
    done = command("rounds=2", "--config-dir", str(tmp_path / "mine"), "seed=3", "--cfg", "job", "model=cnn4")
    assert done.returncode == 0 and "rounds: 2" in done.stdout and "seed: 3" in done.stdout
