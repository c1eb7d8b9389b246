"""IEMOCAP, the Interactive Emotional Dyadic Motion Capture Database: English, scripted and improvised, 10 speakers.

Busso et al., Language Resources and Evaluation 42, 2008; five sessions of a woman and a man. Clips like
`Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav`; who speaks is the last letter, the first is who wears
the markers. Labels: `Session1/dialog/EmoEvaluation/*.txt`, lines that begin with a bracket.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pandas as pd

from fedser.data.corpora import as_table, emotion_of, read_names, warn_left_out
from fedser.data.corpora.cells import place_of
from fedser.errors import InputError

EMOTIONS = {
    "ang": "anger", "dis": "disgust", "exc": "excitement", "fea": "fear", "fru": "frustration", "hap": "happiness",
    "neu": "neutral", "oth": "other", "sad": "sadness", "sur": "surprise",
}  # fmt: skip
UNDECIDED = "xxx"  # annotators differ


def read(root: Path, impro: bool = False, excitement: Literal["happiness", "excitement"] = "happiness") -> pd.DataFrame:
    """The utterances under `root` that annotators agree about, with the columns session ("Session1") and dialog.

    impro: improvised dialogs only. excitement: what it counts as, by custom happiness. Raises InputError as
    `read_names` does, and for a clip that no label file of its session knows.
    """
    codes = EMOTIONS | {"exc": excitement}
    rows, undecided = [], 0
    name = r"(?P<dialog>Ses0(?P<session>\d)[FM]_(?P<kind>impro|script)\w+)_(?P<speaker>[FM])[\dX]+"
    for folder, labels in _sessions(root):
        for path, match in read_names(folder / "sentences" / "wav", name, "like Ses01F_impro01_F000", "IEMOCAP"):
            if impro and match["kind"].lower() != "impro":
                continue
            if (code := labels.get(match[0].upper())) is None:
                raise InputError(f"{path}: has no line in {folder / 'dialog' / 'EmoEvaluation'}; get the whole corpus")
            if code == UNDECIDED:
                undecided += 1
                continue
            speaker = match["speaker"].lower()
            rows.append(
                {
                    "path": path,
                    "speaker": f"0{match['session']}{speaker.upper()}",
                    "emotion": emotion_of(code, codes, path),
                    "sex": speaker,
                    "session": folder.name,
                    "dialog": match["dialog"],
                }
            )
    warn_left_out("IEMOCAP", undecided, "annotators differ (xxx)")
    if not rows:
        raise InputError(f"IEMOCAP: no labelled clip in {root}; correct dataset.root=… or dataset.impro=…")
    return as_table(rows)


def _sessions(root: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """Each session's folder, and the codes of its clips' emotions by their names."""
    place_of(root, "IEMOCAP", *(f"Session{number}" for number in range(1, 6)))
    for folder in sorted(root.glob("Session[1-5]")):
        texts = sorted(place_of(folder, "IEMOCAP", "dialog/EmoEvaluation").glob("[!.]*.txt"))
        lines = (line for file in texts for line in file.read_text(encoding="utf-8", errors="replace").splitlines())
        found = (
            re.match(r"\[[^]]*\]\s+(\S+)\s+(\w+)", line) for line in lines
        )  # % opens the header, C- an annotator's
        yield folder, {match[1].upper(): match[2].lower() for match in found if match}
