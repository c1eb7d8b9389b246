"""What jobs return to a sweeper, on whatever launcher, and what comes back: exit codes, messages, Ctrl-C."""

import importlib
import importlib.metadata
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import HERE, SMALL

from fedser import compose
from fedser.config.validation import validate
from fedser.errors import InputError, RunError

QUICK = [*SMALL, "defence=none", "attack=none", "rounds=1"]
VALIDATED = [*QUICK, "partition.validation=0.25"]
PLUGINS = {"PYTHONPATH": os.pathsep.join([str(HERE / "plugins"), os.environ.get("PYTHONPATH", "")])}
CLIMB = [
    "-m",
    "hydra/sweeper=climb",
    "hydra.sweeper.key=client.lr",
    "hydra.sweeper.then='seed=1'",
    "hydra.sweep.dir=swept",
]
JOBLIB = pytest.param(["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], id="joblib")
SUBMITIT = pytest.param(["hydra/launcher=submitit_local"], id="submitit")


@pytest.fixture
def climb(command, monkeypatch):
    """climb(*arguments) → what an optimising sweep came to in this process, which learns of the plugin as Hydra would."""
    from hydra.core.plugins import Plugins

    monkeypatch.syspath_prepend(HERE / "plugins")
    importlib.invalidate_caches()
    plugin = importlib.import_module("hydra_plugins.climb.sweeper")
    if plugin.Climb not in Plugins.instance().discover(plugin.Sweeper):
        Plugins.instance().register(plugin.Climb)
    return lambda *arguments: command(*CLIMB, *arguments)


def needs(launcher):
    name = launcher[0].split("=")[1].split("_")[0]
    try:
        importlib.metadata.version(f"hydra-{name}-launcher")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"hydra-{name}-launcher is not installed: pip install fedser[sweeps]")


def summaries(folder):
    return [json.loads(file.read_text()) for file in folder.glob("*/summary.json")]


def complaints(done):
    return [line for line in done.stderr.splitlines() if line.startswith("fedser:")]


def test_validation_uar_by_hand(small, monkeypatch):
    """The pooled confusion matrix of the clients' validation utterances: no other utterance, no other model."""
    from fedser.evaluation import measure
    from fedser.federation import client_app

    seen = []
    predict = measure.predict

    def listen(model, x, *rest):
        predicted = predict(model, x, *rest)
        seen.append(predicted)
        return predicted

    labels = []
    confusion = client_app.confusion

    def count(y, predicted, classes):
        labels.append((y.tolist(), predicted.tolist(), any(predicted.data_ptr() == found.data_ptr() for found in seen)))
        return confusion(y, predicted, classes)

    monkeypatch.setattr(measure, "predict", listen)
    monkeypatch.setattr(client_app, "confusion", count)
    result = small("partition.validation=0.25", "rounds=1", "defence=none", "attack=none", "reuse=false")
    assert len(labels) == 2 and all(own for *_, own in labels)  # of each client's validation utterances, once
    pairs = np.array([pair for y, predicted, _ in labels for pair in zip(y, predicted, strict=True)])
    assert len(pairs) > 5
    recalls = [np.mean(pairs[pairs[:, 0] == emotion, 1] == emotion) for emotion in np.unique(pairs[:, 0])]
    assert result.metrics["uar/validation/original"] == pytest.approx(np.mean(recalls))
    assert result.history[-1]["uar/validation/original"] == result.metrics["uar/validation/original"]


def test_a_failure_is_reported_where_the_sweep_was_started(capsys, monkeypatch):
    from fedser import __main__ as command

    monkeypatch.setattr(command, "_failures", [])  # commands that other tests gave in this process have theirs
    monkeypatch.setattr(command, "_starter", None)
    failure = command.Failure("why", 2)  # as in another process
    assert failure != failure and math.isnan(failure + 1) and capsys.readouterr().err == "" and command._failures == []
    with pytest.raises(ValueError, match="why"):
        float(failure)  # as Optuna's sweeper does
    monkeypatch.setattr(command, "_starter", os.getpid())
    arrived = pickle.loads(pickle.dumps(failure))
    assert (arrived.message, arrived.code) == ("why", 2) and capsys.readouterr().err == "fedser: why\n"
    assert len(command._failures) == 1 and command._failures[0] is arrived


def test_a_sweeper_gets_the_metric_and_goes_by_it(cli, tmp_path):
    done = cli(*CLIMB, *VALIDATED, "hydra.sweeper.values=[0.02,0.00001]", **PLUGINS)
    assert done.returncode == 0, done.stderr
    figures = [float(figure) for figure in json.loads((tmp_path / "swept/climb.json").read_text())]
    by_lr = {}
    for folder in (tmp_path / "swept").iterdir():
        if folder.is_dir():
            summary = json.loads((folder / "summary.json").read_text())
            config = (folder / "config.yaml").read_text()
            key = ("seed: 1" in config, "lr: 0.02" in config)
            by_lr[key] = summary["uar/validation/original"]
    first, second, last = figures
    assert len(by_lr) == 3 and (first, second) == (by_lr[False, True], by_lr[False, False])
    assert last == by_lr[True, first >= second]


def test_a_job_that_fails_is_not_a_number_to_the_sweeper(climb, tmp_path):
    done = climb(*VALIDATED, "hydra.sweeper.values=[-1,0.001]")
    assert done.returncode == 2
    first, second, last = json.loads((tmp_path / "swept/climb.json").read_text())
    assert first == "nan" and float(second) >= 0 and float(last) >= 0
    (line,) = complaints(done)
    assert "job 0" in line and "client.lr=-1" in line


def test_without_validation_nothing_is_trained(climb, tmp_path):
    done = climb(*QUICK, "hydra.sweeper.values=[0.01,0.001]")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "partition.validation=0.1" in done.stderr and not (tmp_path / "swept").exists()


HELD = [*QUICK, "partition/split=speaker", "partition.split.test=0", "partition.split.validation=1"]


def test_who_is_held_out_may_choose_settings_by_that_name_alone(climb, tmp_path):
    """Nobody who trains has validation utterances: the default is no figure of theirs, and nothing stands in for it."""
    values, unseen = "hydra.sweeper.values=[0.02,0.00001]", "uar/unseen/validation/original"
    refused = climb(*HELD, values)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and not (tmp_path / "swept").exists()
    assert f"set optimized_metric={unseen}, or partition.validation=0.1" in refused.stderr
    done = climb(*HELD, values, f"optimized_metric={unseen}")
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "swept/climb.json").read_text())
    found = summaries(tmp_path / "swept")
    assert sorted(map(float, figures)) == sorted(summary[unseen] for summary in found) and len(found) == 3
    assert not any("uar/validation/original" in summary for summary in found)


@pytest.mark.parametrize(
    ("words", "there"),
    [
        ([], set()),
        (["partition.validation=0.2"], {"seen"}),
        (["partition/split=sentence", "partition.validation=0.2"], {"seen"}),
        (["partition/split=column"], {"seen"}),
        (["partition/split=column", "partition.split.validation=[]"], set()),
        (["partition/split=speaker"], {"unseen"}),
        (["partition/split=speaker", "partition.validation=0.2"], {"seen", "unseen"}),
        (["partition/split=speaker", "partition.split.validation=0"], set()),
        (["partition/split=speaker", "partition.split.validation=0", "partition.split.column=fold"], {"unseen"}),
        (["partition.split._target_=mine.split"], {"seen", "unseen"}),  # which the split itself will show
    ],
)
def test_whose_validation_utterances_there_may_be(words, there):
    from fedser.config.settings import Settings
    from fedser.config.validation import plain, tidy

    assert Settings.of(tidy(plain(compose([*QUICK, *words])))).partition.validated == there


def test_a_sweep_that_lacks_its_figure_is_told_what_there_is(settings, monkeypatch):
    from omegaconf import OmegaConf

    from fedser.config import sweeps

    hydra = OmegaConf.create({"mode": None, "sweeper": {"_target_": "climb"}})
    monkeypatch.setattr(sweeps, "_optimises", lambda hydra: True)
    monkeypatch.setattr(sweeps.HydraConfig, "get", lambda: hydra)
    found = {"uar/original": 0.5, "uar/unseen/validation/original": 0.25}
    held_out = settings(*HELD, "optimized_metric=uar/unseen/validation/original")
    sweeps.check(held_out, hydra)
    assert sweeps.figure(held_out, found) == 0.25
    with pytest.raises(RunError, match=r"no uar/validation/original: .* It has uar/unseen/validation/original\.$"):
        sweeps.figure(settings(), found)
    with pytest.raises(InputError, match="needs validation utterances of speakers who are held out"):
        sweeps.check(settings("partition.validation=0.2", "optimized_metric=uar/unseen/validation/original"), hydra)
    with pytest.raises(InputError, match="set optimized_metric=accuracy/unseen/validation/original"):
        sweeps.check(settings(*HELD, "optimized_metric=accuracy/validation/original"), hydra)


def test_a_job_without_validation_is_refused_where_the_sweep_is_over_it(climb, tmp_path):
    done = climb(*VALIDATED, "hydra.sweeper.key=partition.validation", "hydra.sweeper.values=[0.0,0.25]")
    assert done.returncode == 2, done.stderr
    (line,) = complaints(done)
    assert "job 0" in line and "partition.validation=0.1" in line
    assert len(summaries(tmp_path / "swept")) == 2


def test_a_test_metric_warns_once(climb, tmp_path):
    done = climb(*QUICK, "optimized_metric=uar/original", "hydra.sweeper.values=[0.01,0.001]")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("test data") == 1
    figures = json.loads((tmp_path / "swept/climb.json").read_text())
    assert sorted(set(map(float, figures))) == sorted(
        {summary["uar/original"] for summary in summaries(tmp_path / "swept")}
    )


@pytest.mark.parametrize(
    ("wanted", "near"),
    [
        ("uar/orignal", "uar/original"),
        ("uar/adversarial/pgd", "uar/adversarial/fgsm"),
        ("loss", "uar/validation/original"),
    ],
)
def test_an_unknown_metric_is_refused(settings, wanted, near):
    with pytest.raises(InputError, match=f"optimized_metric={wanted}.*{near}"):
        settings(f"optimized_metric={wanted}")


def test_a_defence_can_be_chosen_on_validation_utterances(small, tmp_path):
    """All conditions of them, by the same attacks as on test utterances; and what selects a round sees the same."""
    words = ["rounds=2", "partition.validation=0.25", "selection=best", "selection.attack=fgsm", "selection.every=1"]
    metric = "uar/validation/randomised_adversarial/fgsm"
    result = small(*words, "evaluation.validation=true", f"optimized_metric={metric}")
    found, best = result.metrics, max(row["selection/uar"] for row in result.history)
    conditions = {key.removeprefix("uar/validation/") for key in found if key.startswith("uar/validation/")}
    assert conditions == {"original", "randomised", "adversarial/fgsm", "randomised_adversarial/fgsm"}
    assert found["uar/validation/adversarial/fgsm"] == best != found["uar/adversarial/fgsm"]
    plain = small(*words, folder=tmp_path / "plain").metrics
    assert {key: plain[key] for key in plain if key.startswith("uar/")} == {
        key: found[key] for key in plain if key.startswith("uar/")
    }
    with pytest.raises(InputError, match="no such metric"):
        validate(compose([*SMALL, *words, f"optimized_metric={metric}"]))
    with pytest.raises(InputError, match="leaves no validation utterances"):
        small("evaluation.validation=true", folder=tmp_path / "none")


@pytest.mark.parametrize("metric", ["uar_sd/randomised", "recall/original/anger", "accuracy/validation/original"])
def test_every_metric_of_a_summary_can_be_named(settings, metric):
    assert settings(f"optimized_metric={metric}").optimized_metric == metric


@pytest.mark.parametrize("metric", ["detector/auc/evading", "detector/false_alarms"])
def test_a_detector_can_be_chosen_by_its_figures(settings, metric):
    assert settings("detector=lda", f"optimized_metric={metric}").optimized_metric == metric
    with pytest.raises(InputError, match="no such metric"):
        settings(f"optimized_metric={metric}")


@pytest.mark.parametrize("launcher", [JOBLIB, SUBMITIT])
def test_jobs_in_other_processes_fail_as_in_this_one(cli, tmp_path, launcher):
    needs(launcher)
    seed = f"seed={700 + len(launcher)}"  # a model of its own for each launcher
    done = cli(
        "-m", *QUICK, *launcher, seed, "client.lr=0.001,-1", "evaluation.batch_size=32,16", "hydra.sweep.dir=swept"
    )
    assert done.returncode == 2, done.stderr
    assert len(complaints(done)) == 2 and all("client.lr=-1" in line for line in complaints(done))
    assert "Traceback" not in done.stderr and "Error executing job" not in done.stderr
    found = summaries(tmp_path / "swept")
    assert [summary["status"] for summary in found] == ["finished"] * 2
    assert sorted(summary["reused"] for summary in found) == [False, True]  # one trained, the other waited for it


@pytest.mark.parametrize("launcher", [JOBLIB, SUBMITIT])
def test_ctrl_c_ends_a_parallel_sweep(tmp_path, launcher):
    needs(launcher)
    command = [
        sys.executable,
        "-m",
        "fedser",
        "-m",
        *QUICK,
        *launcher,
        "seed=1,2",
        "rounds=5000",
        "hydra.sweep.dir=swept",
    ]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 240
    while not all(lines_of(tmp_path / "swept", 2)):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130, errors
    assert "the same command goes on" in errors
    with pytest.raises(ProcessLookupError):  # nobody of the group is left
        for _ in range(100):
            os.killpg(process.pid, 0)
            time.sleep(0.1)


def lines_of(folder, runs):
    """Per run whether it has a round behind it."""
    files = list(folder.glob("*/history.jsonl"))
    return [file.read_text().count("\n") > 0 for file in files] + [False] * (runs - len(files))


@pytest.mark.parametrize("program", ["fedser", "fedser.evaluate", "fedser.report"])
def test_version(program):
    import fedser
    from fedser import __main__ as command

    name = program.replace(".", "-")
    entry = {"fedser": "main", "fedser.evaluate": "evaluate", "fedser.report": "report"}[program]
    assert callable(getattr(command, entry))
    done = run_entry(entry, "--version")
    assert done.stdout == f"{name} {fedser.__version__}\n" and done.returncode == 0 and done.stderr == ""


def run_entry(entry, *words):
    """A command as its console script starts it."""
    program = f"import sys; sys.argv = ['fedser', *{list(words)}]; from fedser.__main__ import {entry}; {entry}()"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("entry", ["main", "evaluate", "predict", "report"])
def test_a_broken_pipe_for_certain(entry):
    from fedser import __main__ as command

    read, write = os.pipe()
    os.close(read)
    program = f"import sys; sys.argv[1:] = ['--help']; from fedser.__main__ import {entry}; {entry}()"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}  # as a user's is
    child = subprocess.run(
        [sys.executable, "-c", program], env=buffered, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120
    )
    os.close(write)
    assert child.returncode == command.BROKEN_PIPE and child.stderr == ""


def test_help_needs_no_pydantic():
    """Most of a second, on a slow disk; what validates settings is loaded when there are settings."""
    program = "import sys; from fedser.config import compose; print('pydantic' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False False\n"


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("fedser attack=fg", "attack=fgsm"),
        ("fedser attack=pgd attack.st", "attack.steps="),
        ("fedser --config-dir mine attack=mi", "attack=mifgsm attack=mine"),
        ("fedser --config-dir=mine attack=mine attack.sp", "attack.special="),
        ("fedser --config-dir not-there attack=mi", "attack=mifgsm"),
    ],
)
def test_a_shell_completes_with_the_folders_of_the_line(command, monkeypatch, tmp_path, line, offered):
    (tmp_path / "mine/attack").mkdir(parents=True)
    (tmp_path / "mine/attack/mine.yaml").write_text("name: mine\nspecial: 1\n")
    monkeypatch.setenv("COMP_LINE", line)
    done = command("-sc", "query=bash")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, offered, "")
