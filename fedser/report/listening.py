"""Clips that can be listened to on the page, of those that `fedser-listen` left in the runs' folders."""

import base64
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedser.report.analysis.models import Corpus
from fedser.report.analysis.runs import Run

log = logging.getLogger(__name__)
CLIPS = 3  # on the page of a corpus, which has their audio in itself
BYTES = 400_000  # of a clip's file, 12 s at 16 kHz


@dataclass(frozen=True, eq=False)
class Clip:
    """What became of a clip (see `clip.json`), and its sounds by name as data URIs."""

    model: str
    about: dict[str, Any]
    sounds: dict[str, str]


@dataclass(frozen=True)
class Listening:
    """A corpus's clips, and who is to be credited for them; without `credit` there are clips that may not be passed
    on, and none are here."""

    credit: str
    clips: list[Clip]


def listening(corpus: Corpus) -> Listening | None:
    """Of all models the first clips, those first whose class the attack changes; None where nobody wrote any."""
    found = [(model.label, run, file) for model in corpus.models for run in model.runs for file in _files(run)]
    if not found:
        return None
    credits = {run: _credit(run) for _, run, _ in found}
    clips = [clip for label, run, file in found if credits[run] for clip in _read(label, file)]
    clips.sort(key=lambda clip: len(set(clip.about["predicted"].values())) < 2)
    names = [clip.about["clip"] for clip in clips]
    again = {clip: names[:place].count(names[place]) for place, clip in enumerate(clips)}
    clips.sort(key=again.get)  # another clip rather than the same under another attack
    return Listening("; ".join(dict.fromkeys(filter(None, credits.values()))), clips[:CLIPS])


def _files(run: Run) -> list[Path]:
    return sorted((run.folder / "listening").glob("*/*/clip.json"))


def _credit(run: Run) -> str:
    """Of all the corpora that the run is made of; empty where one of them may not be passed on."""
    dataset = run.setting("dataset") or {}
    told = [part.get("credit") for part in (dataset.get("corpora") or {"": dataset}).values()]
    return "; ".join(told) if all(told) else ""


def _read(label: str, file: Path) -> Iterator[Clip]:
    """The clip, unless it is too long for a page or damaged."""
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        sounds = {name: (file.parent / f"{name}.wav").read_bytes() for name in about["files"]}
        known = {"original", "adversarial"} <= about["predicted"].keys() and {"class", "clip", "attack", "snr_of_files"}
        if not known or not known <= about.keys():
            raise ValueError("it lacks keys")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s: can't be listened to (%s)", file, error)
        return
    if all(len(sound) <= BYTES for sound in sounds.values()):
        yield Clip(label, about, {name: _uri(sound) for name, sound in sounds.items()})


def _uri(sound: bytes) -> str:
    return f"data:audio/wav;base64,{base64.b64encode(sound).decode()}"
