"""SAVEE, Surrey Audio-Visual Expressed Emotion: English, acted, 4 men, 480 utterances, 7 emotions.

Jackson & Haq, University of Surrey, 2014. One folder a speaker, `JE/n23.wav`, or all in one, `JE_n23.wav`.
"""

from pathlib import Path

import pandas as pd

from fedser.data.corpora import as_table, emotion_of, read_names

EMOTIONS = {
    "a": "anger",
    "d": "disgust",
    "f": "fear",
    "h": "happiness",
    "n": "neutral",
    "sa": "sadness",
    "su": "surprise",
}


def read(root: Path) -> pd.DataFrame:
    """The utterances under `root`, with the column number. Raises InputError as `read_names` does."""
    rows = []
    name = r"(?P<speaker>[A-Z]{2})_(?P<emotion>[a-z]+)(?P<number>\d+)"
    for path, match in read_names(root, name, "like JE_n23, or n23 in a folder JE", "SAVEE", _name):
        rows.append(
            {
                "path": path,
                "speaker": match["speaker"].upper(),
                "emotion": emotion_of(match["emotion"].lower(), EMOTIONS, path),
                "sex": "m",
                "number": match["number"],
            }
        )
    return as_table(rows)


def _name(file: Path) -> str:
    """JE_n23, in either layout: so a corpus that lies there in both is noticed."""
    return file.stem if "_" in file.stem else f"{file.parent.name}_{file.stem}"
