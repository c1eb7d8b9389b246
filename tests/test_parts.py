"""An evaluation in parts: the same numbers as in one piece, and what is done is not done again."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from conftest import SMALL

from fedser import compose, evaluate, run
from fedser.config.protocol import Protocol
from fedser.display import Display
from fedser.errors import Interrupted
from fedser.evaluation import measure
from fedser.evaluation.parts import Part, Parts

WORDS = [
    "evaluation.attacks=[fgsm,noise,pgd]",
    "evaluation.adaptive=[fgsm,noise]",
    "evaluation.draws=3",
    "evaluation.gradients=true",
    "attacks.pgd.steps=2",
    "simulation=serial",
    "logger=none",
]
SETS = ["fgsm", "noise", "pgd", "adaptive/fgsm", "adaptive/noise"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run(compose([*SMALL, "rounds=1"]), tmp_path_factory.mktemp("run") / "here").folder


@pytest.fixture
def asked(monkeypatch):
    """Which parts clients were asked for, in order."""
    names, evaluate = [], measure.evaluate

    def listen(model, x, y, protocol, **rest):
        names.append(protocol.only)
        return evaluate(model, x, y, protocol, **rest)

    monkeypatch.setattr(measure, "evaluate", listen)
    return names


def record(folder):
    """All of a record but what depends on the clock."""
    with np.load(folder / "example.npz") as example:
        arrays = {name: example[name].tolist() for name in example}
    return json.loads((folder / "evaluation.json").read_text()), pd.read_csv(folder / "utterances.csv"), arrays


def same(one, other):
    assert one[0] == other[0] and one[2] == other[2]
    assert list(one[0]["conditions"]) == list(other[0]["conditions"])
    pd.testing.assert_frame_equal(one[1], other[1])


def only_evaluation(run_folder):
    (folder,) = (run_folder / "evaluations").iterdir()
    return folder


@pytest.fixture(scope="module")
def in_one_piece(finished):
    """The record of the protocol as a single message per client."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Protocol, "parts", property(lambda protocol: [protocol]))
        evaluate.evaluate(finished, WORDS)
    found = record(only_evaluation(finished))
    only_evaluation(finished).rename(finished / "in-one-piece")
    return found


@pytest.fixture
def clean(finished, in_one_piece):
    """The run's folder, without evaluations before and after."""
    import shutil

    yield finished
    shutil.rmtree(finished / "evaluations")


def test_parts_of_a_protocol_by_hand():
    protocol = Protocol(["a", "b"], ["b"], gradients=True)
    assert [(part.only, part.sets, [c.name for c in part.conditions], part.gradients) for part in protocol.parts] == [
        ("original", [], ["original", "randomised"], False),
        ("a", ["a"], ["adversarial/a", "randomised_adversarial/a"], True),
        ("b", ["b"], ["adversarial/b", "randomised_adversarial/b"], False),
        ("adaptive/b", ["adaptive/b"], ["adaptive/b"], True),
    ]


def test_in_parts_every_number_is_the_same(clean, in_one_piece, asked):
    evaluate.evaluate(clean, WORDS)
    assert asked == [part for part in ["original", *SETS] for _ in range(2)]
    same(record(only_evaluation(clean)), in_one_piece)
    assert {file.name for file in only_evaluation(clean).iterdir()} == {
        "evaluation.json", "utterances.csv", "example.npz", "times.json",
    }  # fmt: skip


def stop_after(monkeypatch, part):
    """Ctrl-C, as it arrives when this part is done."""
    answered = Parts.answered

    def interrupt(parts, answer, clients):
        answered(parts, answer, clients)
        if answer.name == part and len(answer.answers) == clients:
            raise Interrupted("stopped")

    monkeypatch.setattr(Parts, "answered", interrupt)


def test_interrupted_it_goes_on_at_the_first_missing_set(clean, in_one_piece, asked, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, "noise")
        with pytest.raises(Interrupted):
            evaluate.evaluate(clean, WORDS)
    assert not (only_evaluation(clean) / "evaluation.json").exists()
    asked.clear()
    evaluate.evaluate(clean, WORDS)
    assert asked == [part for part in SETS[2:] for _ in range(2)]
    same(record(only_evaluation(clean)), in_one_piece)


def test_killed_it_goes_on_too(clean, in_one_piece, asked):
    command = [sys.executable, "-m", "fedser.evaluate", str(clean), *WORDS]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(clean.glob("evaluations/*/parts/*.json")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    done = len(list(clean.glob("evaluations/*/parts/*.json")))
    asked.clear()
    evaluate.evaluate(clean, WORDS)
    assert asked == [part for part in ["original", *SETS][done:] for _ in range(2)]
    same(record(only_evaluation(clean)), in_one_piece)


def test_a_damaged_part_is_measured_again(clean, in_one_piece, asked, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        stop_after(patch, "noise")
        with pytest.raises(Interrupted):
            evaluate.evaluate(clean, WORDS)
    for file in clean.glob("evaluations/*/parts/*.json"):
        if json.loads(file.read_text())["part"]["name"] == "fgsm":
            file.write_text(file.read_text()[:-9])
    asked.clear()
    evaluate.evaluate(clean, WORDS)
    assert asked == [part for part in ["fgsm", *SETS[2:]] for _ in range(2)]
    assert "is damaged" in caplog.text
    same(record(only_evaluation(clean)), in_one_piece)


def test_parts_of_something_else_are_not_used(tmp_path):
    part = Part("fgsm", {"a": {}})
    Parts(tmp_path / "parts", "this").answered(part, clients=1)
    assert Parts(tmp_path / "parts", "this").read("fgsm").answers == {"a": {}}
    assert Parts(tmp_path / "parts", "that").read("fgsm") is None
    assert Parts(tmp_path / "parts", "this").read("pgd") is None


def test_a_part_in_which_somebody_is_missing_is_not_kept(tmp_path):
    Parts(tmp_path / "parts", "key").answered(Part("fgsm", {"a": {}}), clients=2)
    assert not (tmp_path / "parts").exists()


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("reuse", ["true", "false"])
def test_the_last_evaluation_of_a_run_goes_on(tmp_path, asked, monkeypatch, rounds, reuse):
    """After one round, without a checkpoint to go on from, too."""
    words = [*SMALL, f"rounds={rounds}", "evaluation.every=null", f"reuse={reuse}", f"seed={41 + rounds}"]
    words += ["evaluation.attacks=[fgsm,noise]"]
    whole = run(compose([*words, "reuse=false"]), tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, "fgsm")
        with pytest.raises(Interrupted):
            run(compose(words), tmp_path / "run")
    asked.clear()
    again = run(compose(words), tmp_path / "run")
    assert asked == ["noise", "noise"]
    same(record(tmp_path / "run"), record(whole.folder))
    assert again.history == whole.history and not (tmp_path / "run/parts").exists()


def test_other_weights_do_not_use_a_runs_parts(tmp_path, asked, monkeypatch):
    words = [*SMALL, "rounds=1", "evaluation.attacks=[fgsm]", "checkpoint.every=null"]
    with monkeypatch.context() as patch:
        stop_after(patch, "fgsm")
        with pytest.raises(Interrupted):
            run(compose([*words, "seed=51"]), tmp_path / "one")
    (tmp_path / "two").mkdir()
    (tmp_path / "one/parts").rename(tmp_path / "two/parts")
    asked.clear()
    run(compose([*words, "seed=52"]), tmp_path / "two")
    assert asked == ["original", "original", "fgsm", "fgsm"]


def test_progress_says_what_is_done_and_how_long_still(capsys, monkeypatch):
    monkeypatch.setattr("fedser.display.SECONDS_PER_LINE", 0)
    with Display().evaluation(4) as shown:
        shown("fgsm", 1, 30.0)
        shown("pgd", 1.5, 60.0)
        shown("cw", 4, 200.0)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == [
        "evaluation 1/4 fgsm about 1.5 min left",
        "evaluation 1/4 pgd about 1.7 min left",
        "evaluation 4/4 cw ",
    ]
