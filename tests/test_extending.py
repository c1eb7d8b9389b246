"""Components from outside: each kind by a class and a YAML of one's own, nothing of fedser's changed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import FIXTURES, SMALL

from fedser import compose, evaluate, report, run
from fedser.config import interfaces
from fedser.config.compose import compose as composed
from fedser.config.identity import run_name
from fedser.config.validation import validate
from fedser.errors import InputError

ROOT = Path(__file__).parent.parent
TEMPLATE = ROOT / "docs" / "template"
PLAIN = [word for word in SMALL if not word.startswith("model.")]
KINDS = {
    "attack": ["attack=corners", "evaluation.attacks=[fgsm,corners]"],
    "objective": ["defence/training=smoothed"],
    "augmentation": ["augment=[backwards]"],
    "corruption": ["corruption=[swapped]", "corruption.swapped.clients=1"],
    "inference defence": ["defence/inference=noisy"],
    "model": ["model=meannet"],
    "normalisation": ["features.normalisation=centred"],
    "partition": ["partition=groups", "partition.speakers=1"],
    "split": ["partition/split=latest", "partition.split.gap=0.2"],
    "detector": ["detector=apart", "attack=fgsm"],
    "schedule": ["client/schedule=inverse_root"],
    "averaging": ["averaging=everything"],
    "strategy": ["strategy=short_steps", "strategy.longest=0.5"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run per kind, made in this process."""
    folder = tmp_path_factory.mktemp("extended")
    made = {}
    for kind, words in KINDS.items():
        small = [*(PLAIN if kind == "model" else SMALL), "evaluation.every=null"]
        made[kind] = run(compose([*small, *words], config_dir=TEMPLATE), folder / kind.replace(" ", "-"))
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_trains_and_is_evaluated(runs, kind):
    assert runs[kind].metrics["status"] == "finished"
    own = {module: code for module, code in runs[kind].metrics["code"].items() if module != "fedser"}
    assert len(own) == 1 and next(iter(own)).startswith("my_")


def test_they_have_an_effect(runs):
    assert 0 <= runs["attack"].metrics["uar/adversarial/corners"] <= 1
    losses = {kind: run.history[0]["train/loss"] for kind, run in runs.items()}
    assert len({losses[kind] for kind in ("attack", "objective", "augmentation", "model", "normalisation")}) == 5
    assert 0 <= runs["detector"].metrics["detector/auc/evading"] <= 1
    plain = runs["detector"]
    assert runs["schedule"].history[0]["train/loss"] == plain.history[0]["train/loss"]
    assert runs["schedule"].history[1]["train/loss"] != plain.history[1]["train/loss"]
    assert runs["averaging"].metrics["uar/raw/original"] == plain.metrics["uar/original"]
    assert runs["strategy"].history[1]["train/loss"] != runs["attack"].history[1]["train/loss"]
    tested = pd.read_csv(runs["split"].folder / "utterances.csv")["utterance"].map(lambda path: Path(path).name)
    clips = [sorted(file.name for file in (FIXTURES / "emodb").rglob(f"{who}*.flac")) for who in ("14", "15")]
    assert list(tested) == [name for own in clips for name in own[-4:]]  # a fifth of 21
    assert sum(runs["split"].metrics["counts"]["train"].values()) == 2 * (21 - 4 - 4)
    assert {"14", "15"} == set(json.loads((runs["partition"].folder / "evaluation.json").read_text())["clients"])


def test_every_kind_with_an_interface_is_here():
    known = {name for name, value in vars(interfaces).items() if value.__class__ is type(interfaces.Attack)}
    here = {kind.title().replace(" ", "") for kind in [*KINDS, "corpus"]}
    assert known - {"Protocol"} == here


def test_every_file_of_the_template_is_short_and_used():
    told = (TEMPLATE.parent / "extending.md").read_text()
    for file in TEMPLATE.rglob("*.py"):
        yaml = [other for other in TEMPLATE.rglob("*.yaml") if f"{file.stem}." in other.read_text()]
        assert len(yaml) == 1, file
        assert len(file.read_text().splitlines()) + len(yaml[0].read_text().splitlines()) <= 36, file
        assert len([line for line in file.read_text().splitlines() if line.strip()]) <= 30, file
    used = " ".join(word for words in KINDS.values() for word in words) + " dataset=folders"
    for file in TEMPLATE.rglob("*.yaml"):
        assert file.stem in used, file
        assert f"`{file.relative_to(TEMPLATE).as_posix()}`" in told, file


def test_a_corpus_of_ones_own(tmp_path):
    for place, emotion in enumerate(("anger", "fear") * 6):
        speaker = tmp_path / "clips" / f"s{place % 2}"
        speaker.mkdir(parents=True, exist_ok=True)
        source = sorted((FIXTURES / "emodb").rglob("*.flac"))[place]
        shutil.copy(source, speaker / f"{emotion}-{place:02d}.flac")
    words = [word for word in SMALL if not word.startswith("dataset")]
    made = run(compose([*words, "dataset=folders", f"dataset.root={tmp_path / 'clips'}"], TEMPLATE), tmp_path / "run")
    assert made.metrics["counts"]["train"].keys() == {"anger", "fear"} and made.metrics["clients"] == 2


def test_a_finished_run_that_knew_nothing_of_it_is_evaluated_under_it(small, tmp_path):
    plain = small("seed=31")
    record = evaluate.evaluate(plain.folder, ["evaluation.attacks=[corners]", "simulation=serial"], config_dir=TEMPLATE)
    assert "adversarial/corners" in record["conditions"]
    assert record["attacks"]["corners"]["settings"]["tries"] == 4


@pytest.mark.ray
def test_on_workers_in_a_sweep_and_in_the_report(request, monkeypatch, command, tmp_path):
    """Workers, and the process that evaluates later, have never heard of it; the sweep's is made to forget it."""
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder != str(TEMPLATE)])
    for file in TEMPLATE.glob("*.py"):
        monkeypatch.delitem(sys.modules, file.stem, raising=False)
    request.getfixturevalue("callers_ray")  # from here on, so that its workers do not inherit the path
    assert str(TEMPLATE) not in os.environ["PYTHONPATH"]
    words = [word for word in PLAIN if not word.startswith("simulation")]
    words += ["simulation=cpu", "simulation.actors=1", "rounds=1", "attack=corners,fgsm", "model=meannet"]
    swept = command(
        "-m", "--config-dir", str(TEMPLATE), *words, "defence/training=smoothed", f"hydra.sweep.dir={tmp_path}/out"
    )
    assert swept.returncode == 0, swept.stderr
    made = sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert len(made) == 2 and made[0].startswith("emodb-meannet-corners0.05-randomise-smoothed-seed0-")
    again = [sys.executable, "-m", "fedser.evaluate", *(str(tmp_path / "out" / name) for name in made)]
    again += ["--config-dir", str(TEMPLATE), "evaluation.attacks=[corners]", "simulation=serial", "logger=none"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(again, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stdout.count("conditions") == 2, done.stderr
    assert report.main([str(tmp_path / "out"), "--output", str(tmp_path / "page")]) == 0
    page = (tmp_path / "page" / "index.html").read_text()
    assert "meannet" in page and "corners" in page


# --- what does not conform is refused before training ---------------------------------------------------------------


def outside(folder, group, name, module, node, **files):
    """A folder with one YAML of a group, and the module that it names."""
    (folder / group).mkdir(parents=True, exist_ok=True)
    (folder / group / f"{name}.yaml").write_text(f"name: {name}\n{node}\n")
    for stem, text in {**files, **module}.items():
        (folder / f"{stem}.py").write_text(text)
    return folder


NN = "import torch\nfrom torch import nn\n"
BAD = [
    ("defence/inference", "deaf", NN + "class D(nn.Module):\n    def forward(self, x):\n        return x\n",
     "defence/inference=deaf", ["does not take generator", "forward(x, generator)"]),
    ("model", "wide", NN + "class D(nn.Module):\n    def __init__(self, classes):\n        super().__init__()\n"
     "        self.w = nn.Parameter(torch.zeros(3))\n    def forward(self, x):\n        return self.w.expand(len(x), 3)\n",
     "model=wide", ["model=wide", "[2, 3]", "logits [2, 7]"]),
    ("model", "nothing", NN + "class D:\n    def __init__(self, classes):\n        pass\n", "model=nothing", ["has no forward"]),
    ("attack", "mute", "class D:\n    def __call__(self, model, x, y):\n        return x\n", "attack=mute",
     ["attack=mute", "does not take", "seed"]),
    ("attack", "shrinking", "class D:\n    def __call__(self, model, x, y, seed, **more):\n        return x[:, :, 1:]\n",
     "attack=shrinking", ["must return a tensor of the inputs' shape"]),
    ("attack", "failing", "class D:\n    def __call__(self, model, x, y, seed, **more):\n        raise KeyError('no')\n",
     "attack=failing", ["failing can't attack with its settings", "KeyError"]),
    ("defence/training", "flat", "class D:\n    def start_round(self, model, samples, *, round, seed):\n"
     "        return samples\n    def __call__(self, model, batch, step):\n        return 0.0\n",
     "defence/training=flat", ["single number with a gradient"]),
    ("defence/training", "hasty", "class D:\n    def __call__(self, model, batch, step):\n        return 0.0\n",
     "defence/training=hasty", ["has no start_round"]),
    ("partition", "double", "import numpy as np\ndef D(table, *, seed):\n    return {'a': np.arange(10), 'b': np.arange(10)}\n",
     "partition=double", ["deals an utterance twice"]),
    ("partition/split", "late", "def D(table, *, seed):\n    return {}\n", "partition/split=late",
     ["partition.split=late: bad_late.D does not take rows, settings", "call__(table, rows, settings, seed)"]),
    ("partition/split", "torn", "def D(table, rows, settings, *, seed):\n    return {'a': None}\n", "partition/split=torn",
     ["must return {client's name: training, validation, test rows}; client 'a' has not three parts"]),
    ("partition/split", "masks", "def D(table, rows, settings, *, seed):\n"
     "    return {name: (own % 2 > 0, own[:0], own % 2 == 0) for name, own in rows.items()}\n", "partition/split=masks",
     ["positions in the table as whole numbers, not bool"]),
    ("partition/split", "wild", "def D(table, rows, settings, *, seed):\n    return table['nothing']\n",
     "partition/split=wild", ["partition.split=wild: KeyError: 'nothing'"]),
    ("partition", "bare", "def D(table, *, seed):\n    return {'a': None}\n", "partition=bare",
     ["must return {client's name: row positions}, positions in the table as whole numbers, not object"]),
    ("strategy", "absent", "class D:\n    def __init__(self, **more):\n        pass\n", "strategy=absent", ["has no configure_train"]),
    ("features/normalisation", "odd", "class D:\n    def __call__(self, frames):\n        return frames\n",
     "features.normalisation=odd", ["does not take", "everyone"]),
]  # fmt: skip


@pytest.mark.parametrize(("group", "name", "code", "word", "says"), BAD, ids=[f"{row[0]}={row[1]}" for row in BAD])
def test_what_does_not_conform_is_named(tmp_path, group, name, code, word, says):
    module = f"bad_{name}"
    more = (
        "test: 0.2\nvalidation: 0.0" if group == "partition" else "fraction_train: 1.0" if group == "strategy" else ""
    )
    folder = outside(tmp_path / "mine", group, name, {module: code}, f"_target_: {module}.D\n{more}")
    with pytest.raises(InputError) as raised:
        run(compose([*(PLAIN if group == "model" else SMALL), word], config_dir=folder), tmp_path / "run")
    for part in says:
        assert part in str(raised.value)
    assert "\n" not in str(raised.value) and not (tmp_path / "run" / "history.jsonl").exists()


@pytest.mark.parametrize(
    ("node", "says"),
    [
        ("_target_: no_such_module.D", ["there is no module no_such_module", "--config-dir"]),
        ("_target_: json.D", ["json has no D"]),
        ("_target_: broken_import.D", ["importing broken_import failed", "no_such_thing"]),
        ("_target_: collections.Counter\nsteps: 3\n_convert_: all", ["attack=mine"]),
    ],
)
def test_a_target_that_is_not_there(tmp_path, node, says):
    folder = outside(tmp_path, "attack", "mine", {"broken_import": "import no_such_thing\n"}, node)
    with pytest.raises(InputError) as raised:
        run(compose([*SMALL, "attack=mine"], config_dir=folder), tmp_path / "run")
    for part in says:
        assert part in str(raised.value)


def test_options_are_held_against_the_signature(tmp_path):
    code = "class D:\n    def __init__(self, strength: float, times: int = 2):\n        pass\n"
    code += "    def __call__(self, model, x, y, seed, **more):\n        return x\n"
    folder = outside(tmp_path, "attack", "signed", {"signed_attack": code}, "_target_: signed_attack.D\nstrength: 1.0")
    assert validate(compose([*SMALL, "attack=signed"], config_dir=folder)).attack.name == "signed"
    for word, says in (
        ("attack.strength=much", "attack.strength=much must be a finite number"),
        ("+attack.times=2.5", "attack.times=2.5 must be a whole number"),
        ("+attack.strenght=2", "Did you mean 'strength'?"),
    ):
        with pytest.raises(InputError, match=says.replace("?", r"\?")):
            validate(compose([*SMALL, "attack=signed", word], config_dir=folder))


def test_a_file_of_ours_is_not_shadowed(tmp_path):
    outside(tmp_path, "attack", "fgsm", {}, "eps: 1")
    with pytest.raises(InputError, match="rename it"):
        compose(SMALL, config_dir=tmp_path)


# --- identity -------------------------------------------------------------------------------------------------------

NET = NN + (
    "from {helper} import WIDTH\n"
    "class Net(nn.Module):\n    def __init__(self, classes):\n        super().__init__()\n"
    "        self.layer = nn.Linear(64, classes)\n"
    "    def forward(self, x):\n        return self.layer(x.mean((1, 2))[:, :64]) * WIDTH\n"
)


def commands(mine, cwd, *folders):
    """One process for several commands that follow each other, into these folders → exit codes, and what was said."""
    words = ["--config-dir", str(mine), *PLAIN, "rounds=1", "model=net"]
    program = (
        "import sys\nfrom fedser.__main__ import main\n"
        f"for folder in {folders!r}:\n"
        f"    sys.argv = ['fedser', *{words!r}, f'hydra.run.dir={{folder}}']\n"
        "    try: main()\n"
        "    except SystemExit as left: print('exit', left.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=cwd, capture_output=True, text=True)
    return [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("exit")], done


def test_an_edited_model_is_another_run_and_is_trained_anew(tmp_path):
    mine = outside(tmp_path / "mine", "model", "net", {"edited_net": NET.format(helper="edited_helper")},
                   "_target_: edited_net.Net", edited_helper="WIDTH = 1.0\n")  # fmt: skip
    codes, done = commands(mine, tmp_path, "run", "run")
    assert codes == [0, 0] and done.stdout.count("had finished before") == 1, done.stderr
    before = json.loads((tmp_path / "run" / "summary.json").read_text())
    (mine / "edited_helper.py").write_text("WIDTH = 0.5\n")  # not the class's own module, but one that it imports
    codes, done = commands(mine, tmp_path, "run", "other")
    assert codes == [2, 0] and "of other code" in done.stderr and "had finished before" not in done.stdout
    after = json.loads((tmp_path / "other" / "summary.json").read_text())
    assert not after["reused"]
    assert before["code"]["fedser"] == after["code"]["fedser"] and before["code"] != after["code"]


def test_the_name_follows_the_source_of_models_and_attacks_and_of_what_they_import(tmp_path):
    attack = (
        "from named_helper import x\nclass D:\n    def __call__(self, model, x, y, seed, **more):\n        return x\n"
    )
    folder = outside(
        tmp_path, "attack", "named", {"named_attack": attack}, "_target_: named_attack.D", named_helper="x=1"
    )
    outside(tmp_path, "model", "named", {"named_net": NET.format(helper="named_helper")}, "_target_: named_net.Net")

    def names():
        code = (
            "import sys; from fedser import compose; from fedser.config.identity import run_name;"
            "from fedser.config.validation import plain, tidy; from fedser.config.settings import Settings\n"
            "for words in (['attack=named'], ['model=named'], ['attack=fgsm']):\n"
            f"    print(run_name(Settings.of(tidy(plain(compose([*{PLAIN!r}, *words], {str(folder)!r}))))))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    first = names()
    assert names() == first
    (folder / "named_attack.py").write_text(attack + "# changed\n")
    second = names()
    assert second[0] != first[0] and second[1:] == first[1:]
    (folder / "named_helper.py").write_text("x = 2\n")
    third = names()
    assert third[0] != second[0] and third[1] != second[1] and third[2] == second[2]


def test_source_that_changes_under_a_running_process_is_refused(tmp_path):
    code = "class D:\n    def __call__(self, model, x, y, seed, **more):\n        return x\n"
    folder = outside(tmp_path, "attack", "moving", {"moving_attack": code}, "_target_: moving_attack.D")
    settings = validate(composed([*SMALL, "attack=moving"], folder))
    run_name(settings)
    (folder / "moving_attack.py").write_text(code + "# changed\n")
    with pytest.raises(InputError, match="moving_attack has changed"):
        run_name(settings)
