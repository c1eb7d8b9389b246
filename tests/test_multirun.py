"""The paper in one command: four models, evaluated, then evaluated again under more attacks, then the report."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

from conftest import SMALL

from fedser import compose
from fedser.config.validation import validate

ROOT = Path(__file__).parent.parent


def multirun(folder, *overrides):
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OUTPUT": str(folder / "out"),
        "FEDSER_CACHE": str(folder / "cache"),  # what other tests have trained would be taken
        "EVIDENCE": "evaluation=paper evaluation.attacks=[noise,fgsm] evaluation.adaptive=[fgsm] evaluation.draws=2",
    }
    command = ["bash", str(ROOT / "multirun.sh"), *SMALL, *overrides]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400)


def test_it_makes_the_table_and_goes_on_where_it_was(tmp_path):
    few = ["rounds=1", "evaluation.draws=2", "attacks.deepfool.steps=1", "features.frames=32"]
    done = multirun(tmp_path, *few)
    assert done.returncode == 0, done.stderr[-3000:]
    summaries = {file.parent: json.loads(file.read_text()) for file in (tmp_path / "out").glob("*/summary.json")}
    assert len(summaries) == 4
    for folder, summary in summaries.items():
        assert summary["status"] == "finished" and not summary["reused"], folder
        for attack in ("fgsm", "pgd", "deepfool"):
            assert {f"uar/adversarial/{attack}", f"uar/randomised_adversarial/{attack}"} <= set(summary)
        (evidence,) = folder.glob("evaluations/paper-*/evaluation.json")
        assert "adaptive/fgsm" in json.loads(evidence.read_text())["conditions"]
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    assert "AT-DeepFool" in page and "AT-PGD" in page

    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*/summary.json")}
    again = multirun(tmp_path, *few)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "had finished before" in again.stdout and "was measured before" in again.stderr
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*/summary.json")}


def test_a_mistake_stops_it_at_once(tmp_path):
    done = multirun(tmp_path, "model=cnn5")
    assert done.returncode == 2
    assert "did you mean model=cnn4?" in done.stderr
    assert not (tmp_path / "out" / "report").exists()


def test_ren_et_als_table_is_33_trainings_that_can_be_composed(tmp_path):
    """The commands alone: 33 real trainings take hours. What they train is in `test_config` and `test_objectives`."""
    log, programs = tmp_path / "commands", tmp_path / "bin"
    programs.mkdir()
    for name in ("fedser", "fedser-report", "fedser-evaluate"):
        (programs / name).write_text(f'#!/bin/sh\nprintf "%s\\t" {name} "$@" >> {log}; echo >> {log}\n')
        (programs / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "OUTPUT": "out", "EVIDENCE": ""}
    script = ["bash", str(ROOT / "multirun.sh"), "dataset.root=."]
    assert subprocess.run([*script, "experiment=ren2020"], cwd=tmp_path, env=environment).returncode == 0
    *sweeps, report = (line.split("\t")[:-1] for line in log.read_text().splitlines())
    assert report == ["fedser-report", "out", "--output", "out/report"] and len(sweeps) == 2
    jobs = []
    assert all(sweep[1] == "--multirun" for sweep in sweeps)
    for _, _, *words in sweeps:
        choices = [
            [f"{key}={each}" for each in values.split(",")] for key, _, values in (w.partition("=") for w in words)
        ]
        jobs += itertools.product(*choices)
    assert len(jobs) == 33
    for job in (jobs[0], jobs[2], jobs[3], jobs[-1]):
        validate(compose([word for word in job if not word.startswith("hydra.")]))

    log.unlink()
    assert subprocess.run([*script, "experiment=v03", "+x=ren2020"], cwd=tmp_path, env=environment).returncode == 0
    assert "cnn4,resnet50" not in log.read_text()  # a folder or another key of that name is not the experiment
