"""ESD, the Emotional Speech Database: Mandarin and English, acted, 20 speakers, 35,000 utterances, 5 emotions.

Zhou et al., Speech Communication 137, 2022. Clips like `0011/Neutral/0011_000189.wav`, in some copies in
`0011/Neutral/train/`; speakers 0001–0010 Mandarin, 0011–0020 English. Each says the same 350 sentences in each emotion.
"""

from pathlib import Path
from typing import Literal

import pandas as pd

from fedser.data.corpora import as_table, read_names
from fedser.errors import InputError

EMOTIONS = {
    "angry": "anger",
    "happy": "happiness",
    "neutral": "neutral",
    "sad": "sadness",
    "surprise": "surprise",
}
SENTENCES = 350


def read(root: Path, language: Literal["mandarin", "english"] | None = None) -> pd.DataFrame:
    """The utterances under `root`, with the columns text and language; no sex, which the corpus's names don't say.

    language: only these speakers. Raises InputError as `read_names` does, and for a clip in no emotion's folder.
    """
    rows = []
    for path, match in read_names(root, r"(?P<speaker>\d{4})_(?P<number>\d{6})", "like 0011_000189", "ESD"):
        spoken = "mandarin" if int(match["speaker"]) <= 10 else "english"
        if language not in (None, spoken):
            continue
        folders = Path(path).relative_to(root).parts[:-1]
        emotion = next((EMOTIONS[name.lower()] for name in reversed(folders) if name.lower() in EMOTIONS), None)
        if emotion is None:
            raise InputError(
                f"{path}: is in none of the folders {', '.join(EMOTIONS)}; lay the corpus out as published"
            )
        text = f"{spoken} {(int(match['number']) - 1) % SENTENCES + 1:03d}"
        rows.append({"path": path, "speaker": match["speaker"], "emotion": emotion, "sex": None, "text": text})
        rows[-1]["language"] = spoken
    if not rows:
        raise InputError(f"ESD: nothing in {language} under {root}; correct dataset.language=… or dataset.root=…")
    return as_table(rows)
