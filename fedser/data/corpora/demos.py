"""DEMoS, the Database of Elicited Mood in Speech: Italian, induced, 68 speakers, 9,365 utterances of 7 emotions.

Parada-Cabaleiro et al., Language Resources and Evaluation 54, 2020; the corpus of Chang et al. 2022. 332 neutral
utterances come on top, which that paper drops. Names like `NP_f_01_col01a` in the folder DEMOS and `f_01_neu01a` in
NEU; speakers are 01–69 without 35.
"""

from pathlib import Path

import pandas as pd

from fedser.data.corpora import as_table, emotion_of, read_names

EMOTIONS = {
    "rab": "anger",  # rabbia
    "dis": "disgust",  # disgusto
    "pau": "fear",  # paura
    "col": "guilt",  # colpa
    "gio": "happiness",  # gioia
    "tri": "sadness",  # tristezza
    "sor": "surprise",  # sorpresa
    "neu": "neutral",
}


def read(root: Path) -> pd.DataFrame:
    """The utterances under `root`, with the columns group (NP or PR, missing for neutral), number and take.

    Raises InputError as `read_names` does.
    """
    rows = []
    name = (
        r"((?P<group>NP|PR)_)?(?P<sex>[mf])_(?P<speaker>\d\d)_"
        r"(?P<emotion>[a-z]{3})(?P<number>\d+)(?P<take>[a-z]*)"
    )
    for path, match in read_names(root, name, "like NP_f_01_col01a or f_01_neu01a", "DEMoS"):
        rows.append(
            {
                "path": path,
                "speaker": match["speaker"],
                "emotion": emotion_of(match["emotion"].lower(), EMOTIONS, path),
                "sex": match["sex"].lower(),
                "group": match["group"].upper() if match["group"] else None,
                "number": match["number"],
                "take": match["take"].lower(),
            }
        )
    return as_table(rows)
