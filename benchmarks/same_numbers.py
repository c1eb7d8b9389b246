"""The same numbers: does this checkout train and measure as another commit does, to the bit?

    python benchmarks/same_numbers.py [COMMIT] [--cases default,matrix] [--jobs 2] [--data DIR]

Each case runs twice, side by side: by the code of COMMIT (in a git worktree, removed afterwards) and by the checkout
that this file lies in, uncommitted changes included. Every setting that decides a number is pinned, by keys that users
type, so that neither other defaults nor other YAML behind them touch it. Prints a line for each case, `same` or
`DIFFERENT` and what differs first in each file; the exit code is 1 if any differs or fails.

Compared are all metrics of every round (history.jsonl), all tensors after every evaluated round, bit for bit, the
confusion matrices and the sets of examples of evaluation.json, and every row of utterances.csv. Not compared: batch
norm's counters, on which no number depends; names, hashes, times; `evaluation.fraction` below 1, whose choice of clips
changes on purpose after 8223148 (stratified within each client, since none must know others' labels).
"""

import argparse
import contextlib
import csv
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

ROOT = Path(__file__).resolve().parent.parent

SYNTHETIC = "scale=0.01 seed=0 root=null classes=[anger,disgust,fear,guilt,happiness,sadness,surprise]"
EMODB = "root=${oc.env:FEDSER_DATA}/emodb classes=[anger,boredom,disgust,fear,happiness,neutral,sadness]"
LOGMEL = """sample_rate=16000 frames=128 mels=64 window=512 hop=256 fmin=20 fmax=8000 floor=1e-8
    normalisation=zscore_global"""  # 128 frames crop the longer clips and repeat the shorter ones
ADAM = """epochs=2 batch_size=8 lr=3e-3 optimizer.eps=1e-7 optimizer.fused=true optimizer_state=reset timeout=null
    threads=1 precision=fp32 attack_precision=fp32 tf32=false"""
SHARES = "test=0.2 validation=0.0"
RANDOMISE = "inference.frames=[128,135] inference.mels=[64,66] inference.size=[135,66] inference.value=0.5"
TRAINING = "training.attack=${attack} training.alpha=0.5 training.pairing=disjoint training.start_round=2"
MEASURED = """every=1 draws=3 fraction=1 curve=[${attack.name}] eps=null grid.eps=null batch_size=64 precision=fp32
    utterances=true example=true"""
PAPER = f"{MEASURED} attacks=[${{attack.name}}] adaptive=[] sanity=null gradients=false"
MATRIX = f"""{MEASURED} attacks=[noise,fgsm,pgd,deepfool,pgd_strong,eot_pgd,mifgsm,apgd] gradients=true
    adaptive=[fgsm,pgd,deepfool,pgd_strong] sanity.attack=pgd_strong sanity.steps_factor=2 sanity.eps_factors=[2,20]"""
ATTACKS = {
    "noise": "eps=0.05",
    "fgsm": "eps=0.05 labels=predicted",
    "pgd": "eps=0.05 labels=predicted alpha=0.1 steps=3",
    "deepfool": "labels=predicted steps=5 overshoot=0.02",
    "pgd_strong": "eps=0.05 labels='true' alpha=null steps=3",
    "eot_pgd": "eps=0.05 labels='true' alpha=null steps=3",
    "mifgsm": "eps=0.05 labels='true' alpha=null steps=3 decay=1.0",
    "apgd": "eps=0.05 labels='true' steps=5",
}
ALL = [f"++attacks.{name}.{setting}" for name in ATTACKS for setting in f"{ATTACKS[name]} box=null eot=2".split()]

USUAL = {  # for each group its option and its settings, where a case says nothing else
    "dataset": ("emodb", EMODB),
    "features": ("logmel", LOGMEL),
    "partition": ("speaker", SHARES),
    "model": ("cnn4", "width=2 bn_momentum=0.1 bn_eps=1e-5"),
    "client": ("default", ADAM),
    "attack": ("fgsm", ATTACKS["fgsm"]),
    "defence": ("two_stage", f"{TRAINING} {RANDOMISE}"),
    "strategy": ("fedavg", "fraction_train=1.0"),
    "evaluation": ("paper", PAPER),
    "simulation": ("serial", "device=cpu min_reply_fraction=1.0"),
}
ALWAYS = "seed=0 rounds=3 dataset.drop=[] dataset.client=speaker attack.box=null reuse=false logger=none"
FEWER = "rounds=2 client.epochs=1 evaluation.every=2 evaluation.draws=2"  # where there are many clients, or much work
CASES = {  # options and settings that differ, and single settings
    "default": ({"dataset": ("synthetic", SYNTHETIC), "defence": ("randomise", RANDOMISE)}, FEWER),
    "fgsm": ({}, "experiment=emodb"),
    "deepfool": ({"attack": ("deepfool", ATTACKS["deepfool"])}, "experiment=emodb"),
    "persist": ({}, "client.optimizer_state=persist"),
    "fedprox": ({"strategy": ("fedprox", "fraction_train=1.0 proximal_mu=0.1")}, ""),
    "fedadam": ({"strategy": ("fedadam", "fraction_train=1.0 eta=0.01 beta_1=0.9 beta_2=0.99 tau=1e-3")}, ""),
    "fedmedian": ({"strategy": ("fedmedian", "fraction_train=1.0")}, ""),  # sees every reply, and not their average
    "dirichlet": ({"partition": ("dirichlet", f"alpha=0.5 clients=4 {SHARES}")}, ""),
    "vgg15": ({"model": ("vgg15", "bn_momentum=0.01 bn_eps=1e-3"), "partition": ("iid", f"clients=2 {SHARES}")}, FEWER),
    "matrix": ({"evaluation": ("matrix", MATRIX)}, " ".join(["++attack.eot=2", *ALL])),
}
RAY = {"simulation": ("cpu", "device=cpu min_reply_fraction=1.0 actors=2 num_cpus=1 num_gpus=0 probe=false")}
CASES |= {f"{name}-ray": (CASES[name][0] | RAY, CASES[name][1]) for name in ("default", "fgsm", "persist", "fedadam")}

# The tensors in the order in which COMMIT has them in its two flat vectors; all cases have 7 classes.
LAYOUTS = """import json; from fedser.models import cnn4, vgg15; models = cnn4.CNN4(7, 2), vgg15.VGG15(7)
print(json.dumps([[(name, t.shape) for name, t in m.state_dict().items() if t.shape] for m in models]))"""


def python(side: tuple[Path, Path], *arguments: str) -> str:
    """What Python prints with one side's code. Raises RuntimeError with its last lines where it fails."""
    tree, place = side
    own = os.environ | {"PYTHONPATH": str(tree), "FEDSER_CACHE": str(place / "cache")}
    done = subprocess.run([sys.executable, *arguments], cwd=place, env=own, capture_output=True, text=True)
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-12:])
        raise RuntimeError(f"the code of {tree} ended with {done.returncode}\n{last}")
    return done.stdout


def run(side: tuple[Path, Path], case: str) -> Path:
    """The folder of a case's run, made by a process of its own."""
    folder, (differing, single) = side[1] / case, CASES[case]
    overrides = [f"hydra.run.dir={folder}", *ALWAYS.split()]
    words = single.split()
    later = (side[0] / "conf/experiment/v03.yaml").exists()  # whose defaults are others than those of 0.3.0
    if later:
        chosen = [word.partition("=")[2] for word in words if word.startswith("experiment=")]
        words = [f"experiment=[{','.join(['v03', *chosen])}]", *(w for w in words if not w.startswith("experiment="))]
    for group, (option, settings) in (USUAL | differing).items():
        option = "v03" if later and group == "client" else option
        overrides += [f"{group}={option}", *(f"{group}.{setting}" for setting in settings.split())]
    python(side, "-m", "fedser", *overrides, *words)
    return folder


@contextlib.contextmanager
def both(commit: str):
    """The two sides, each with its tree and a folder for its cache and its runs. Nothing is left behind."""
    git = ["git", "-C", ROOT, "worktree"]
    with tempfile.TemporaryDirectory(prefix="same-numbers-") as scratch:
        tree, then, now = (Path(tempfile.mkdtemp(dir=scratch)).resolve() for _ in range(3))
        subprocess.run([*git, "add", "--quiet", "--detach", tree, commit], check=True)
        try:
            yield (tree, then), (ROOT, now)
        finally:
            subprocess.run([*git, "remove", "--force", tree], check=True)


def tensors(file: Path, layout: list) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file by their names, whether it names them or has them in two flat vectors."""
    held, found = load_file(file), {}
    if "parameters" not in held:
        return {name: held[name] for name, _ in layout if name in held}
    for name, shape in layout:
        vector = "buffers" if name.endswith(("running_mean", "running_var")) else "parameters"
        tensor, held[vector] = np.split(held[vector], [np.prod(shape)])
        found[name] = tensor.reshape(shape)
    return found | {name: rest for name, rest in held.items() if rest.size}


def results(folder: Path, layout: list) -> dict[str, dict]:
    """Everything that is compared, by the file that it stands in."""
    history, utterances = ((folder / name).read_text().splitlines() for name in ("history.jsonl", "utterances.csv"))
    evaluation = json.loads((folder / "evaluation.json").read_text())
    weights = [*sorted(folder.glob("weights/*.safetensors")), folder / "model.safetensors"]
    return {
        "history.jsonl": {f"round {row['round']}": row for row in map(json.loads, history)},
        "weights": {file.stem: tensors(file, layout) for file in weights},
        "evaluation.json": {key: evaluation[key] for key in ("conditions", "examples")},
        "utterances.csv": {row["utterance"]: row for row in csv.DictReader(utterances)},
    }


def difference(then, now, where: str) -> str | None:
    """The first place where two nested values differ, or None."""
    if isinstance(then, dict) and isinstance(now, dict):
        pairs = ((then.get(key, "nothing"), now.get(key, "nothing"), f"{where} {key}") for key in then | now)
        return next(filter(None, (difference(*pair) for pair in pairs)), None)
    if isinstance(then, np.ndarray) and isinstance(now, np.ndarray):
        same = (then.dtype, then.shape, then.tobytes()) == (now.dtype, now.shape, now.tobytes())
        return None if same else f"{where} {list(then.shape)}"
    same = isinstance(now, type(then)) and then == now
    return None if same else f"{where}: {then!s:.60}, now {now!s:.60}"


def verdict(runs: list, layout: list) -> str:
    """`same`, or what differs first in each file."""
    try:
        then, now = (results(run.result(), layout) for run in runs)
    except RuntimeError as error:
        return f"DIFFERENT: {error}"
    found = list(filter(None, (difference(then[file], now[file], file) for file in then)))
    return f"DIFFERENT: {'; '.join(found)}" if found else "same"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit", nargs="?", default="8223148", help="default: %(default)s, version 0.3.0")
    parser.add_argument("--cases", type=lambda text: text.split(","), default=list(CASES), help=", ".join(CASES))
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at a time (%(default)s)")
    parser.add_argument("--data", type=Path, default=ROOT / "tests/fixtures", help="the folder of emodb/ (42 clips)")
    arguments = parser.parse_args()
    if not set(arguments.cases) <= set(CASES):
        parser.error(f"--cases: there are {', '.join(CASES)}")
    os.environ["FEDSER_DATA"] = str(arguments.data.absolute())
    failed = False
    with both(arguments.commit) as sides, ThreadPoolExecutor(arguments.jobs) as pool, contextlib.ExitStack() as end:
        end.callback(pool.shutdown, cancel_futures=True)  # Ctrl-C ends what runs, and starts nothing more
        for side in sides:
            assert python(side, "-c", "import fedser; print(fedser.__path__[0])").strip() == str(side[0] / "fedser")
        cnn4, vgg15 = json.loads(python(sides[0], "-c", LAYOUTS))
        runs = {case: [pool.submit(run, side, case) for side in sides] for case in arguments.cases}
        for case in runs:
            text = verdict(runs[case], vgg15 if case == "vgg15" else cnn4)
            print(f"{case:14}{text}", flush=True)
            failed |= text != "same"
    sys.exit(failed)


if __name__ == "__main__":
    main()
