"""TESS, the Toronto Emotional Speech Set: English, acted, 2 women, 200 words, 2,800 clips, 7 emotions.

Pichora-Fuller & Dupuis, 2020. Names like `OAF_back_angry`: speaker (the older, the younger one), word, emotion.
"""

from pathlib import Path

import pandas as pd

from fedser.data.corpora import as_table, emotion_of, read_names

EMOTIONS = {
    "angry": "anger",
    "disgust": "disgust",
    "fear": "fear",
    "happy": "happiness",
    "neutral": "neutral",
    "ps": "surprise",  # pleasant surprise
    "sad": "sadness",
}


def read(root: Path) -> pd.DataFrame:
    """The utterances under `root`, with the column text. Raises InputError as `read_names` does."""
    rows = []
    name = r"(?P<speaker>OA|YA)F?_(?P<text>[a-z]+)_(?P<emotion>[a-z]+)"  # one clip is named OA_bite_neutral
    for path, match in read_names(root, name, "like OAF_back_angry", "TESS"):
        rows.append(
            {
                "path": path,
                "speaker": f"{match['speaker'].upper()}F",
                "emotion": emotion_of(match["emotion"].lower(), EMOTIONS, path),
                "sex": "f",
                "text": match["text"].lower(),
            }
        )
    return as_table(rows)
