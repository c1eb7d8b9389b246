"""EMOVO: Italian, acted, 6 speakers, 588 utterances, 7 emotions.

Costantini et al., LREC 2014. Names like `f2/gio-f2-b2`: emotion, speaker, sentence.
"""

from pathlib import Path

import pandas as pd

from fedser.data.corpora import as_table, emotion_of, read_names

EMOTIONS = {
    "dis": "disgust",  # disgusto
    "gio": "happiness",  # gioia
    "neu": "neutral",
    "pau": "fear",  # paura
    "rab": "anger",  # rabbia
    "sor": "surprise",  # sorpresa
    "tri": "sadness",  # tristezza
}


def read(root: Path) -> pd.DataFrame:
    """The utterances under `root`, with the column text. Raises InputError as `read_names` does."""
    rows = []
    name = r"(?P<emotion>[a-z]{3})-(?P<speaker>(?P<sex>[fm])\d)-(?P<text>\w+)"
    for path, match in read_names(root, name, "like gio-f2-b2", "EMOVO"):
        rows.append(
            {
                "path": path,
                "speaker": match["speaker"].lower(),
                "emotion": emotion_of(match["emotion"].lower(), EMOTIONS, path),
                "sex": match["sex"].lower(),
                "text": match["text"].lower(),
            }
        )
    return as_table(rows)
