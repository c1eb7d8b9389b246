"""Emotions of clips by a trained model: the command `fedser-predict`.

    fedser-predict outputs/RUN clip.wav folder
    fedser-predict outputs/RUN clip.wav --csv predictions.csv --defended

Any file that soundfile reads, at any rate, mono or stereo; folders are searched for audio. What can't be used is named
and left out. Exit codes: 0 done, 1 a clip was left out, 2 bad input, 130 interrupted.
"""

import argparse
import contextlib
import csv
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fedser.errors import FedserError, InputError
from fedser.features.audio import BadAudio

AUDIO = (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".au", ".caf", ".rf64", ".w64")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="fedser-predict", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", metavar="RUN", help="a finished run's folder, or a model.safetensors")
    parser.add_argument("clips", nargs="+", type=Path, metavar="CLIP", help="audio files, or folders of them")
    parser.add_argument("--csv", metavar="FILE", help="write all classes' probabilities there")
    parser.add_argument("--defended", action="store_true", help="behind the run's defence at inference")
    parser.add_argument("--draws", type=int, default=10, help="draws of that defence, averaged (%(default)s)")
    parser.add_argument("--speaker", nargs="+", type=Path, default=[], metavar="PATH",
                        help="clips to normalise by, where the run normalises each speaker by herself")  # fmt: skip
    parser.add_argument("--checkpoint", metavar="PATH",
                        help="where the frozen part of a speech backbone lies now")  # fmt: skip
    parser.add_argument("--config-dir", action="append", default=[], metavar="DIR",
                        help="where your own model's module lies; its code is run")  # fmt: skip
    options = parser.parse_intermixed_args(argv)
    try:
        return _predict(options)
    except (FedserError, OSError) as error:
        print(f"fedser-predict: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 1)
    except KeyboardInterrupt:
        return 130


def _predict(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import track
    from rich.table import Table

    from fedser.models.recogniser import load

    spoken, clips = ([clip for path in paths for clip in _audio(path)] for paths in (options.speaker, options.clips))
    recogniser, bad = load(options.run, spoken, options.config_dir, options.checkpoint), 0
    table = Table("file", "class", "probability", box=None, pad_edge=False)
    table.columns[0].overflow = "fold"
    with _rows(options.csv, recogniser.classes) as write:
        for clip in track(
            clips, "clips", console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
        ):
            try:
                found = recogniser.predict(clip, defended=options.defended, draws=options.draws)
            except BadAudio as error:
                print(f"fedser-predict: {error}", file=sys.stderr)
                bad += 1
                continue
            best = max(found, key=found.get)
            table.add_row(escape(str(clip)), escape(best), f"{found[best]:.3f}")
            write([clip, best, *(f"{probability:.7g}" for probability in found.values())])
    Console(width=None if sys.stdout.isatty() else 10_000).print(table)  # lines of a file or pipe are not folded
    return 1 if bad else 0


def _audio(path: Path) -> list[Path]:
    """The file itself, or the audio files below a folder. Raises InputError where there are none."""
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.rglob("[!.]*") if file.suffix.lower() in AUDIO and file.is_file())
    if not found:
        raise InputError(f"{path}: holds no audio, no file that ends in {', '.join(AUDIO)}")
    return found


@contextlib.contextmanager
def _rows(path: str | None, classes: Sequence[str]) -> Iterator[Callable[[list], object]]:
    """What writes a row (file, class, probabilities) at once, so that what there is stays when it is interrupted."""
    if path is None:
        yield lambda row: None
        return
    try:
        file = open(path, "w", newline="", buffering=1)  # noqa: SIM115
    except OSError as error:
        raise InputError(f"--csv {path} can't be written: {error.strerror}.") from error
    with file:
        write = csv.writer(file).writerow
        write(["file", "class", *(f"probability/{name}" for name in classes)])
        yield write


if __name__ == "__main__":
    sys.exit(main())
