"""Folders of finished runs with made-up but plausible numbers, in exactly the form that real runs leave.

python tests/runs.py FOLDER        # the four models of Chang et al. 2022 with two seeds, to look at a report
"""

import csv
import json
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from fedser.evaluation import sanity
from fedser.evaluation.metrics import uar

CLASSES = ("anger", "boredom", "disgust", "fear", "happiness", "neutral", "sadness")
SPEAKERS = {"03": "male", "08": "female", "09": "female", "10": "male", "11": "male"} | {
    "12": "male", "13": "female", "14": "female", "15": "male", "16": "female"
}  # fmt: skip
MODELS = ("nature", "fgsm", "pgd", "deepfool")
PAPER = ("fgsm", "pgd", "deepfool")
FULL = (*PAPER, "pgd_strong", "mifgsm", "apgd", "square", "cw", "noise", "ensemble")
GRID = (0.0125, 0.025, 0.1, 0.2)
KINDS = ("adversarial", "randomised_adversarial", "adaptive")
EPS = dict.fromkeys(("fgsm", "pgd", "pgd_strong", "mifgsm", "apgd", "autoattack", "square", "noise"), 0.05)
EPS |= {"ensemble": 0.05, "eot_pgd": 0.05}

CLEAN = {"nature": 0.80, "fgsm": 0.84, "pgd": 0.83, "deepfool": 0.78}
# UAR on adversarial examples of ε = 0.05: of the nature model, of one trained against L∞, of one trained against L2.
UNDER = {
    "fgsm": (0.30, 0.68, 0.40), "pgd": (0.18, 0.62, 0.30), "pgd_strong": (0.06, 0.50, 0.16),
    "mifgsm": (0.08, 0.52, 0.20), "apgd": (0.04, 0.46, 0.12), "autoattack": (0.02, 0.43, 0.08),
    "square": (0.26, 0.66, 0.38), "cw": (0.02, 0.05, 0.03), "deepfool": (0.03, 0.04, 0.05),
    "noise": (0.79, 0.82, 0.77), "ensemble": (0.05, 0.45, 0.12),
}  # fmt: skip
SIZE = {"deepfool": (2.1, 5.2, 2.9), "cw": (1.7, 4.4, 2.4)}  # median L2 needed to flip, in σ


@dataclass(frozen=True)
class Made:
    """One run to be made: how well it does is a function of its model, its seed and what each clip is like."""

    model: str = "nature"
    seed: int = 0
    dataset: str = "emodb"
    classes: tuple[str, ...] = CLASSES
    speakers: tuple[str, ...] = tuple(SPEAKERS)
    rounds: int = 60

    @property
    def name(self) -> str:
        worn = "randomise" if self.model == "nature" else "two_stage"
        attack = "fgsm0.05" if self.model == "nature" else self.model
        return f"{self.dataset}-cnn4-{attack}-{worn}-seed{self.seed}-{self.seed:08x}{MODELS.index(self.model):08x}"

    @property
    def column(self) -> int:
        return {"nature": 0, "deepfool": 2}.get(self.model, 1)

    @cached_property
    def utterances(self) -> list[dict]:
        """The test clips: about ten of a speaker's fifty, the same for all models of a seed."""
        rows = []
        for speaker in self.speakers:
            emotions = np.random.default_rng(int(speaker)).integers(0, len(self.classes), 50)
            rng = np.random.default_rng([self.seed, int(speaker)])
            for clip in sorted(rng.choice(50, rng.integers(9, 14), replace=False)):
                emotion = self.classes[emotions[clip]]
                row = {"utterance": f"{speaker}{emotion[:2]}{clip:02d}", "client": speaker, "speaker": speaker}
                rows.append(
                    row | {"sex": SPEAKERS.get(speaker) or "", "emotion": emotion, "label": int(emotions[clip])}
                )
        return rows

    @cached_property
    def ease(self) -> np.ndarray:
        """Log odds by which each clip is easier than the average one: its own and its speaker's."""
        own = [0.9 * np.random.default_rng([*row["utterance"].encode()]).standard_normal() for row in self.utterances]
        speakers = {speaker: 0.5 * np.random.default_rng(int(speaker)).standard_normal() for speaker in self.speakers}
        return np.array(own) + [speakers[row["speaker"]] for row in self.utterances]

    def target(self, condition: str) -> float:
        """The expected fraction of correct clips."""
        clean = CLEAN[self.model] + 0.01 * self.seed
        kind, _, attack = condition.partition("/")
        attack, _, varied = attack.partition("@")
        key, _, value = varied.partition("=")
        if not attack:
            return clean - (0.01 if kind == "randomised" else 0)
        under = UNDER[attack][self.column]
        if key == "eps":
            under = clean * (under / clean) ** (float(value) / 0.05)
        elif key:
            under = under / 2
        if kind == "adversarial":
            return under
        if attack in SIZE and kind == "randomised_adversarial":
            return 0.85 * clean
        return under + (0.4 if kind == "randomised_adversarial" else 0.05) * (clean - under)


def correct(run: Made, condition: str, draws: int) -> np.ndarray:
    """How often each clip is classified correctly, of so many draws: counts [n]."""
    rng = np.random.default_rng([run.seed, *condition.encode(), MODELS.index(run.model)])
    target = min(max(run.target(condition), 0.01), 0.99)
    odds = np.log(target / (1 - target)) * 1.2 + run.ease
    certain = 1 / (1 + np.exp(-odds)) > rng.random(len(odds))  # mostly the same in every draw
    chance = 0.9 * certain + 0.05
    return certain.astype(int) if draws == 1 else rng.binomial(draws, chance)


def matrices(run: Made, right: np.ndarray, draws: int) -> dict[str, np.ndarray]:
    """Counts [true, predicted] per client; a wrong clip is taken for one of two neighbouring classes."""
    count = len(run.classes)
    found = {client: np.zeros((count, count), int) for client in run.speakers}
    for number, (row, hits) in enumerate(zip(run.utterances, right, strict=True)):
        label = row["label"]
        found[row["client"]][label, label] += hits
        found[row["client"]][label, (label + 1 + number % 2 * 2) % count] += draws - hits
    return found


def measured(run: Made, condition: str, draws: int, kept: np.ndarray) -> tuple[dict, np.ndarray]:
    """A condition as evaluation.json has it, and the fraction of draws that got each clip right."""
    kind, _, attack = condition.partition("/")
    draws = 1 if kind in ("original", "adversarial") else draws
    right = correct(run, condition, draws)
    part = Made(run.model, run.seed, run.dataset, run.classes, run.speakers)
    part.__dict__["utterances"] = [row for row, keep in zip(run.utterances, kept, strict=True) if keep]
    clients = matrices(part, right[kept], draws)
    whole = sum(clients.values())
    record = {"attack": attack or None, "draws": draws, "matrix": whole.tolist()}
    record |= {"by_client": {client: matrix.tolist() for client, matrix in clients.items()}}
    record |= {"by_draw": [(whole // draws).tolist()] * draws, "uar": uar(whole), "uar_sd": 0.012 if draws > 1 else 0.0}
    return record | {"accuracy": float(np.trace(whole) / whole.sum())}, right / draws


def settings_of(attack: str) -> dict:
    """As the attack's file in conf/attack, so far as a report reads it."""
    name, _, varied = attack.partition("@")
    key, _, value = varied.partition("=")
    return {"name": name, "eps": EPS.get(name), "labels": "predicted" if name in PAPER else "true",
            "norm": "L2" if name in SIZE else "Linf", **({key: float(value)} if key else {})}  # fmt: skip


def threat_of(attack: str) -> str:
    settings = settings_of(attack)
    knows = {"square": "black-box", "noise": "no knowledge"}.get(settings["name"], "white-box")
    bound = f"at most {settings['eps']:g} per cell" if settings["eps"] else "no budget, the smallest change that works"
    return f"{settings['name']}: {knows}, {settings['norm']}, {bound}, {settings['labels']} labels"


def distances(run: Made, attack: str, kept: np.ndarray) -> np.ndarray:
    """L2 (σ) of each clip's perturbation; NaN where it stayed as it was."""
    cells = np.sqrt(373 * 64)
    eps = settings_of(attack)["eps"]
    if eps:
        return np.full(len(kept), eps * cells * 0.99)
    rng = np.random.default_rng([5, run.seed, *attack.encode()])
    found = SIZE[attack][run.column] * np.exp(0.5 * rng.standard_normal(len(kept)) + 0.2 * run.ease)
    return np.where(correct(run, "original", 1), found, np.nan)


def example_of(run: Made, attack: str, kept: np.ndarray) -> dict:
    """The budget that a set of examples used."""
    l2, eps = distances(run, attack, kept)[kept], settings_of(attack)["eps"]
    median = float(np.nanmedian(l2))
    moved = float(np.isfinite(l2).mean())
    return {"linf": eps or 0.31, "l2": median, "rms": median / np.sqrt(373 * 64), "moved": moved, "zero_gradient": 0.0,
            "snr_db": 20 * np.log10(np.sqrt(373 * 64) / median), "seconds": 3.2}  # fmt: skip


def conditions_of(attacks, kinds, clean=True) -> list[str]:
    return (["original", "randomised"] if clean else []) + [f"{kind}/{attack}" for kind in kinds for attack in attacks]


def evaluation(folder: Path, run: Made, name: str, names: list[str], draws: int, fraction: float = 1.0) -> Path:
    """Writes evaluation.json, utterances.csv and example.npz into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = np.random.default_rng(1).permutation(len(run.utterances)) < round(fraction * len(run.utterances))
    results = {condition: measured(run, condition, draws, kept) for condition in names}
    attacks = list(dict.fromkeys(condition.partition("/")[2] for condition in names if "/" in condition))
    sets = [*attacks, *(c for c in names if c.startswith("adaptive/"))]
    clients = {c: {"sex": SPEAKERS.get(c), "utterances": sum(r["client"] == c for r in run.utterances)}
               for c in run.speakers}  # fmt: skip
    content = {
        "format": 1, "name": name, "identity": name.encode().hex()[:16], "round": run.rounds, "seconds": 42.0,
        "version": "0.3.0", "classes": list(run.classes), "clients": clients,
        "evaluation": {"name": name, "attacks": attacks, "draws": draws, "fraction": fraction, "every": 4},
        "inference": {"_target_": "fedser.defences.randomisation.Randomise", "frames": [373, 380], "mels": [64, 66], "value": 0.5},
        "attacks": {attack: {"settings": settings_of(attack), "threat": threat_of(attack)} for attack in attacks},
        "conditions": {condition: record for condition, (record, _) in results.items()},
        "examples": {key: example_of(run, key.removeprefix("adaptive/"), kept) for key in sets},
    }  # fmt: skip
    (folder / "evaluation.json").write_text(json.dumps(content | {"flags": sanity.flags(content)}))
    write_utterances(folder / "utterances.csv", run, results, sets, kept)
    write_example(folder / "example.npz", run, [a for a in attacks if "@" not in a])
    return folder


def write_utterances(path: Path, run: Made, results: dict, sets: list[str], kept: np.ndarray) -> None:
    columns = {f"correct/{condition}": right for condition, (_, right) in results.items()}
    for key in sets:
        l2 = distances(run, key.removeprefix("adaptive/"), kept)
        columns |= {f"l2/{key}": l2, f"snr/{key}": 20 * np.log10(np.sqrt(373 * 64) / l2)}
    rows = [
        {key: row[key] for key in ("utterance", "client", "speaker", "sex", "emotion")}
        | {
            column: "" if np.isnan(values[number]) else round(float(values[number]), 4)
            for column, values in columns.items()
        }
        for number, row in enumerate(run.utterances)
        if kept[number]
    ]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def write_example(path: Path, run: Made, attacks: list[str]) -> None:
    """A spectrogram with harmonics and pauses, and perturbations of the right size."""
    rng = np.random.default_rng(3)
    time, mel = np.arange(373)[:, None], np.arange(64)[None, :]
    voiced = (np.sin(time / 23) > -0.3) * np.exp(-((mel - 18 - 6 * np.sin(time / 40)) ** 2) / 400)
    x = 2.2 * voiced * (1 + 0.5 * np.cos(mel / 1.6 + time / 60)) - 1 + 0.25 * rng.standard_normal((373, 64))
    arrays = {"x": x.astype(np.float32), "title": np.array("03a01Fa: happiness (speaker 03)")}
    for attack in attacks:
        signs = np.sign(rng.standard_normal((373, 64)) + np.roll(x, 1, axis=0) - x)
        size = EPS[attack] if attack in EPS else 0.02 * voiced
        arrays |= {f"delta/{attack}": (size * signs).astype(np.float32), f"predicted/{attack}": np.array("neutral")}
    np.savez(path, **arrays)


def history(run: Made, names: list[str]) -> list[dict]:
    """Curves that rise like 1 − exp(−r), evaluated every fourth round."""
    rng = np.random.default_rng([run.seed, MODELS.index(run.model)])
    rows = []
    for number in range(1, run.rounds + 1):
        rows.append({"round": number, "train/loss": float(2 * np.exp(-number / 25) + 0.1 * rng.random())})
        if number % 4 == 0 or number == run.rounds:
            grown = 1 - np.exp(-number / 14)
            noise = 0.02 * rng.standard_normal(len(names))
            values = [1 / 7 + (run.target(name) - 1 / 7) * grown + n for name, n in zip(names, noise, strict=True)]
            rows[-1] |= {f"uar/{name}": float(np.clip(v, 0, 1)) for name, v in zip(names, values, strict=True)}
    return rows


def config_of(run: Made) -> dict:
    training = None if run.model == "nature" else {
        "_target_": "fedser.training.adversarial.AdversarialTraining", "attack": settings_of(run.model), "alpha": 0.5}  # fmt: skip
    attack = "fgsm" if run.model == "nature" else run.model
    return {
        "dataset": {"name": run.dataset, "root": f"/data/{run.dataset}", "classes": list(run.classes)},
        "features": {"name": "logmel", "sample_rate": 16000, "frames": 373, "mels": 64, "hop": 256, "floor": 1e-08},
        "partition": {"name": "speaker", "test": 0.2},
        "model": {"name": "cnn4", "width": 8},
        "client": {"epochs": 1, "batch_size": 8, "lr": 0.001, "optimizer_state": "reset"},
        "attack": settings_of(attack),
        "defence": {"name": "randomise" if run.model == "nature" else "two_stage", "training": training,
                    "inference": {"_target_": "fedser.defences.randomisation.Randomise", "value": 0.5}},
        "strategy": {"name": "fedavg", "fraction_train": 1.0},
        "evaluation": {"name": "paper", "every": 4, "attacks": list(PAPER), "draws": 10},
        "attacks": {name: settings_of(name) for name in FULL},
        "seed": run.seed,
        "rounds": run.rounds,
    }  # fmt: skip


def make_run(folder: Path, run: Made | None = None, *, status: str = "finished", full: bool = True, **summary) -> Path:
    """One run's folder: its own evaluation of Table 3's conditions and, if `full`, two later ones."""
    run = run or Made()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config_of(run))))
    names = conditions_of(PAPER, KINDS[:2])
    rows = history(run, names)
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = {"status": status, "name": run.name, "version": "0.3.0", "started": "2026-11-20T12:57:56+00:00",
               "clients": len(run.speakers), "utterances": 535, "parameters": 67543, "seconds": 1834.2,
               "plan": "2 clients at a time on 2 CPU cores", "rounds": run.rounds, **summary}  # fmt: skip
    if status == "finished":
        evaluation(folder, run, "paper", names, draws=3)
        conditions = json.loads((folder / "evaluation.json").read_text())["conditions"]
        summary |= {f"uar/{name}": record["uar"] for name, record in conditions.items()}
    if status == "finished" and full:
        later = folder / "evaluations"
        evaluation(later / "full", run, "full", conditions_of(FULL, KINDS), draws=10)
        grid = [f"pgd_strong@eps={eps:g}" for eps in GRID]
        evaluation(later / "sweep", run, "sweep", conditions_of(grid, KINDS, clean=False), draws=10)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2))
    return folder


def make_grid(folder: Path, models=MODELS, seeds=(0, 1), full: bool = True, **made) -> list[Path]:
    """Each model with each seed; one with a dear attack on a quarter of the clips."""
    folders = []
    for run in (Made(model, seed, **made) for model in models for seed in seeds):
        folders.append(make_run(folder / run.name, run, full=full))
    if full:
        run = Made(models[0], seeds[0], **made)
        names = conditions_of(["autoattack"], KINDS, clean=False)
        evaluation(folders[0] / "evaluations" / "dear", run, "dear", names, draws=10, fraction=0.25)
    return folders


if __name__ == "__main__":
    print(*make_grid(Path(sys.argv[1])), sep="\n")
