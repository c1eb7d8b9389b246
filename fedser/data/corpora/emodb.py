"""EMO-DB, the Berlin Database of Emotional Speech: German, acted, 10 speakers, 535 utterances, 7 emotions.

Burkhardt et al., "A Database of German Emotional Speech", Interspeech 2005. Names like `03a01Fa`: speaker 03,
text a01, emotion F, version a.
"""

from pathlib import Path

import pandas as pd

from fedser.data.corpora import as_table, emotion_of, read_names

EMOTIONS = {
    "W": "anger",  # Wut
    "L": "boredom",  # Langeweile
    "E": "disgust",  # Ekel
    "A": "fear",  # Angst
    "F": "happiness",  # Freude
    "T": "sadness",  # Trauer
    "N": "neutral",
}
MALE = {"03", "10", "11", "12", "15"}
FEMALE = {"08", "09", "13", "14", "16"}


def read(root: Path) -> pd.DataFrame:
    """The utterances under `root`, with the columns text and version. Raises InputError as `read_names` does."""
    rows = []
    name = r"(?P<speaker>\d\d)(?P<text>[a-z]\d\d)(?P<emotion>[a-z])(?P<version>[a-z]?)"
    for path, match in read_names(root, name, "like 03a01Fa", "EMO-DB"):
        speaker = match["speaker"]
        rows.append(
            {
                "path": path,
                "speaker": speaker,
                "emotion": emotion_of(match["emotion"].upper(), EMOTIONS, path),
                "sex": "m" if speaker in MALE else "f" if speaker in FEMALE else None,
                "text": match["text"].lower(),
                "version": match["version"].lower(),
            }
        )
    return as_table(rows)
