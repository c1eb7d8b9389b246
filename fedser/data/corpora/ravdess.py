"""RAVDESS, the Ryerson Audio-Visual Database of Emotional Speech and Song: English, acted, 24 speakers.

Livingstone & Russo, PLoS ONE 13(5), 2018; speech part: 1,440 utterances, 8 emotions. Names like
`03-01-06-01-02-01-12`: modality, channel (01 speech, 02 song), emotion, intensity, statement, repetition, actor.

The published audio has one recording under two names, 03-01-03-01-02-01-07 and 03-01-03-01-02-02-07.
"""

from pathlib import Path

import pandas as pd

from fedser.data.corpora import as_table, emotion_of, read_names
from fedser.errors import InputError

EMOTIONS = {
    "01": "neutral",
    "02": "calm",
    "03": "happiness",
    "04": "sadness",
    "05": "anger",
    "06": "fear",
    "07": "disgust",
    "08": "surprise",
}
CHANNELS = {"01": "speech", "02": "song"}
INTENSITIES = {"01": "normal", "02": "strong"}


def read(root: Path, channel: str = "speech") -> pd.DataFrame:
    """The utterances under `root`, with the columns channel, intensity, text and repetition.

    `channel` is speech or song; the other one, if it lies there too, is passed over. Raises InputError as
    `read_names` does.
    """
    rows = []
    name = (
        r"\d\d-(?P<channel>0[12])-(?P<emotion>\d\d)-(?P<intensity>0[12])-"
        r"(?P<text>\d\d)-(?P<repetition>\d\d)-(?P<actor>\d\d)"
    )
    for path, match in read_names(root, name, "like 03-01-06-01-02-01-12", "RAVDESS"):
        if CHANNELS[match["channel"]] != channel:
            continue
        rows.append(
            {
                "path": path,
                "speaker": match["actor"],
                "emotion": emotion_of(match["emotion"], EMOTIONS, path),
                "sex": "m" if int(match["actor"]) % 2 else "f",
                "channel": channel,
                "intensity": INTENSITIES[match["intensity"]],
                "text": match["text"],
                "repetition": match["repetition"],
            }
        )
    if not rows:
        raise InputError(f"RAVDESS: nothing of channel '{channel}' under {root} (there are speech and song)")
    return as_table(rows)
