"""What attacks on the waveform sound like: the command `fedser-listen`.

    fedser-listen outputs/RUN
    fedser-listen outputs/RUN --attack snr_pgd snr_noise --snr 25 45 --clips 5

Writes a few test clips of a finished run as 16-bit WAV files, original, adversarial and their difference, into the
run's folder, where `fedser-report` finds them. What has an `=` is an override as for `fedser-evaluate`. Exit codes:
0 done, 1 a clip's class changes by the rounding to 16 bits, 2 bad input, 130 interrupted.
"""

import argparse
import json
import logging
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from fedser.errors import FedserError, InputError, Interrupted

OWN = ("evaluation=paper", "detector=none", "simulation=serial", "logger=none")


def listen(
    folder: str | Path,
    attacks: Sequence[str] = ("snr_pgd",),
    levels: Sequence[float] = (35.0,),
    clips: int = 3,
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
    config_dir: str | Path | None = None,
    checkpoint: str | Path | None = None,
) -> list[dict]:
    """Writes so many test clips of a finished run under each attack at each level (dB); returns what each `clip.json`
    says, with its `folder`.

    Clients give in turns a clip that is recognised, heard as in the evaluation, without randomisation. `checkpoint` is
    where the frozen part of a speech backbone lies now.

    Raises InputError for what `fedser.evaluate.evaluate` refuses, and for an attack that changes no waveform.
    """
    from fedser import evaluate
    from fedser.federation import listening
    from fedser.runs.folder import RunFolder

    place = RunFolder(Path(folder))
    round, packed = evaluate.weights_of(place, overrides)
    names = [f"{name}@snr={level:g}" for name in attacks for level in levels]
    words = [word for word in overrides if not word.startswith("round=")]
    chosen = [*OWN, "evaluation.attacks=[" + ",".join(f"'{name}'" for name in names) + "]", *words]
    if checkpoint:
        _check_checkpoint(str(checkpoint), place.path / "model.safetensors")
    try:
        settings = evaluate.settings_of(place, chosen, config_dir, checkpoint)
    except InputError:  # of the level, which an attack on features has not: say that first
        _check(evaluate.settings_of(place, words, config_dir, checkpoint).attacks, attacks)
        raise
    _check(settings.attacks, attacks)
    target = Path(output).absolute() if output else place.path.absolute() / listening.FOLDER
    _write(evaluate.prepared_as(place, settings), round, packed, clips, target)
    found = [file for name in names for file in sorted((target / name).glob(f"*/{listening.FILE}"))]
    return [json.loads(file.read_text()) | {"folder": str(file.parent)} for file in found]


def _write(prepared, round: int, weights: dict, clips: int, target: Path) -> None:
    """Has the clients write so many clips together."""
    from fedser.federation import listening
    from fedser.simulation import backend, interrupt

    plan, stop = prepared.plan(), threading.Event()

    def serve(grid) -> None:
        federation = prepared.federation(grid, plan, stop, target)
        federation.ask(listening.ACTION, round, weights, clips=_shares(prepared.splits, clips), folder=str(target))

    with interrupt.listening(stop, plan):
        backend.simulate(serve, listening.app, len(prepared.splits), plan, stop)


def _check(known: dict, attacks: Sequence[str]) -> None:
    """Raises InputError for an attack that changes the network's inputs, of which nothing can be heard."""
    from fedser.features.front_end import on_waveforms

    for name in attacks:
        if name in known and not on_waveforms(known[name].build()):
            raise InputError(f"--attack {name}: it changes features, which nobody can listen to.")


def _check_checkpoint(checkpoint: str, file: Path) -> None:
    """Raises InputError where the run's model has no frozen part, or one of another checkpoint."""
    from fedser.models import recogniser, weights

    if not (frozen := weights.read(file)[1].get("frozen")):
        raise InputError(f"--checkpoint {checkpoint}: {file} has no frozen part that lies elsewhere.")
    recogniser.check_frozen(checkpoint, frozen, file)


def _shares(splits: Sequence, clips: int) -> list[int]:
    """How many of the clips each client gives, by turns, as far as it has test clips."""
    shares = [0] * len(splits)
    while clips > 0 and any(share < len(split.test) for share, split in zip(shares, splits, strict=True)):
        for number, split in enumerate(splits):
            if clips > 0 and shares[number] < len(split.test):
                shares[number], clips = shares[number] + 1, clips - 1
    return shares


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="fedser-listen", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", metavar="RUN", help="a finished run's folder")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="e.g. attacks.snr_pgd.steps=50, round=100")
    parser.add_argument(
        "--attack", nargs="+", default=["snr_pgd"], metavar="NAME", help="on the waveform (%(default)s)"
    )
    parser.add_argument("--snr", nargs="+", type=float, default=[35.0], metavar="DB",
                        help="by how much the speech is louder than the change (%(default)s)")  # fmt: skip
    parser.add_argument(
        "--clips", type=int, default=3, metavar="N", help="test clips, of different speakers (%(default)s)"
    )
    parser.add_argument("-o", "--output", metavar="FOLDER", help="default: RUN/listening, where fedser-report looks")
    parser.add_argument("--checkpoint", metavar="PATH", help="where the frozen part of a speech backbone lies now")
    parser.add_argument("--config-dir", metavar="DIR", help="a folder with YAML files and modules of your own")
    options = parser.parse_intermixed_args(argv)
    sys.path.append(os.getcwd())  # modules of the user's own
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        if options.clips < 1:
            raise InputError(f"--clips {options.clips}: at least one.")
        where = (options.output, options.overrides, options.config_dir, options.checkpoint)
        found = listen(options.run, options.attack, options.snr, options.clips, *where)
    except (Interrupted, KeyboardInterrupt):
        return 130
    except (FedserError, OSError) as error:
        print(f"fedser-listen: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    for each in found:
        before, after = each["predicted"].values()
        level = "left alone" if each["snr_of_files"] is None else f"{each['snr_of_files']:.1f} dB"
        print(f"{each['folder']}: {each['class']}, recognised as {before}, then {after}, {level}")
    if changed := [each["folder"] for each in found if not each["unchanged"]]:
        print(f"fedser-listen: rounding to 16 bits changes the class of {', '.join(changed)}", file=sys.stderr)
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
