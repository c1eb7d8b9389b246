"""The paper in one command: four models, evaluated, then evaluated again under more attacks, then the report."""

import json
import os
import subprocess
import sys
from pathlib import Path

from conftest import SMALL

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
    few = ["rounds=1", "evaluation.draws=2", "attacks.deepfool.steps=1"]
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
