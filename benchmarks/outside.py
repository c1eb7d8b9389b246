"""Attacks from outside against fedser's strongest of the same knowledge, on a finished run.

    python benchmarks/outside.py RUN [--eps 0.05] [--fraction 1] [--without art_apgd] [override …]

Those of `benchmarks/outside`: ART's PGD and Auto-PGD, and 100 steps of 20 draws through the randomisation where the run
has one. Prints the UAR that each leaves, and by how much the best of them goes beyond fedser's best: a positive number
says that fedser's attacks flatter the model.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

OURS = {"adversarial": ["pgd_strong", "mifgsm", "apgd", "apgd_dlr"], "adaptive": ["apgd", "eot_pgd", "eot_margin"]}
THEIRS = {"adversarial": ["art_pgd", "art_apgd"], "adaptive": ["art_pgd", "eot_tanh"]}
FOLDER = Path(__file__).with_name("outside")


def measured(run: Path, knowledge: str, names: list[str], given) -> dict[str, float]:
    """The UAR [%] that each of these attacks leaves the run's model, by attackers of this knowledge."""
    which = "attacks" if knowledge == "adversarial" else "adaptive"
    words = [f"evaluation.{which}=[{','.join(names)}]", *([] if which == "attacks" else ["evaluation.attacks=[]"])]
    words += [f"evaluation.eps={given.eps}", f"evaluation.fraction={given.fraction}", "logger=none", *given.overrides]
    command = [sys.executable, "-c", "from fedser.__main__ import evaluate; import sys; sys.exit(evaluate())"]
    done = subprocess.run([*command, str(run), "--config-dir", str(FOLDER), *words], text=True)
    if done.returncode:
        sys.exit(done.returncode)
    for path in run.glob("evaluations/*/evaluation.json"):
        record = json.loads(path.read_text())
        same = (record["evaluation"]["eps"], record["evaluation"]["fraction"]) == (given.eps, given.fraction)
        if same and {f"{knowledge}/{name}" for name in names} <= record["conditions"].keys():
            return {name: 100 * record["conditions"][f"{knowledge}/{name}"]["uar"] for name in names}
    sys.exit(f"{run} has no evaluation by {', '.join(names)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--fraction", type=float, default=1.0, help="of the test utterances")
    parser.add_argument("--eps", type=float, default=0.05, help="of all attacks, σ")
    parser.add_argument("--without", action="append", default=[], help="an attack to leave out")
    parser.add_argument("overrides", nargs="*", help="of fedser-evaluate, e.g. simulation=serial")
    given = parser.parse_intermixed_args()
    randomised = "randomised" in json.loads((given.run / "evaluation.json").read_text())["conditions"]
    for knowledge in ("adversarial", "adaptive") if randomised else ("adversarial",):
        sides = [[name for name in side[knowledge] if name not in given.without] for side in (OURS, THEIRS)]
        uars = measured(given.run, knowledge, [name for side in sides for name in side], given)
        for name, uar in uars.items():
            print(f"{knowledge + '/' + name:28}{uar:6.1f}")
        if not all(sides):
            continue
        ours, theirs = (min(side, key=uars.get) for side in sides)
        print(f"{knowledge}: {theirs} goes {uars[ours] - uars[theirs]:+.1f} points beyond {ours}\n")


if __name__ == "__main__":
    main()
