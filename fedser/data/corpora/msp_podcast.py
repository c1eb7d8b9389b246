"""MSP-Podcast: English, spontaneous, turns of podcasts, over 100,000 in recent releases, 8 emotions.

Lotfian & Busso, IEEE Transactions on Affective Computing 10(4), 2019. Clips like `Audios/MSP-PODCAST_0001_0008.wav`,
listed in `Labels/labels_consensus.csv` (in some releases `Audio`, `labels_concensus.csv`).
"""

from pathlib import Path

import pandas as pd

from fedser.data.corpora import as_table, clips, emotion_of, warn_left_out
from fedser.data.corpora.cells import SEXES, clip_of, place_of, read_cells
from fedser.errors import InputError

EMOTIONS = {
    "A": "anger", "C": "contempt", "D": "disgust", "F": "fear", "H": "happiness", "N": "neutral", "O": "other",
    "S": "sadness", "U": "surprise",
}  # fmt: skip
UNDECIDED = "X"
PARTS = {"train": "train", "validation": "validation", "development": "validation", "test1": "test"}
COLUMNS = ("FileName", "EmoClass", "SpkrID", "Gender", "Split_Set")
UNKNOWN = ("unknown", "nan", "none")  # written out, or an empty cell


def read(root: Path) -> pd.DataFrame:
    """The turns that annotators agree about and that the official split uses, with the column split (train,
    validation, test). Unknown speakers and sexes are missing.

    Raises InputError for a list or folder that is not there, and a clip that is listed and not there.
    """
    names = [f"labels_con{letter}ensus.csv" for letter in "sc"]
    listed = place_of(root, "MSP-Podcast", *(f"Labels/{name}" for name in names), *names)
    found = clips(place_of(root, "MSP-Podcast", "Audios", "Audio"), "MSP-Podcast")
    rows, undecided, others = [], 0, 0
    for _, cells in read_cells(listed, COLUMNS).sort_values("FileName").iterrows():
        part, speaker = PARTS.get(str(cells["Split_Set"]).lower()), str(cells["SpkrID"])
        undecided += cells["EmoClass"] == UNDECIDED
        others += part is None and cells["EmoClass"] != UNDECIDED
        if part is None or cells["EmoClass"] == UNDECIDED:
            continue
        rows.append(
            {
                "path": clip_of(cells["FileName"], found, listed),
                "speaker": None if speaker.lower() in UNKNOWN else speaker,
                "emotion": emotion_of(cells["EmoClass"], EMOTIONS, f"{listed}, {cells['FileName']}"),
                "sex": SEXES.get(str(cells["Gender"]).lower()),
                "split": part,
            }
        )
    warn_left_out("MSP-Podcast", undecided, "annotators differ (X)")
    warn_left_out("MSP-Podcast", others, "in another set than Train, Validation (or Development) and Test1")
    if not rows:
        raise InputError(f"{listed}: lists no clip of Train, Validation or Test1 that annotators agree about")
    return as_table(rows)
