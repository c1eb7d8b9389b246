"""nEMO: Polish, acted, 9 speakers, 4,481 utterances, 6 emotions.

Christop, LREC-COLING 2024. `data.tsv` lists the clips `samples/EB0_anger_1.wav`.
"""

from pathlib import Path

import pandas as pd

from fedser.data.corpora import as_table, clips, emotion_of
from fedser.data.corpora.cells import SEXES, clip_of, place_of, read_cells

EMOTIONS = {name: name for name in ("anger", "fear", "happiness", "neutral", "sadness", "surprise")}
EMOTIONS["surprised"] = "surprise"
COLUMNS = ("file_id", "emotion", "speaker_id", "gender")


def read(root: Path) -> pd.DataFrame:
    """The utterances that `data.tsv` lists, with the column text where it has one.

    Raises InputError for a list or folder that is not there, and a clip that is listed and not there.
    """
    listed = place_of(root, "nEMO", "data.tsv")
    found, rows = clips(place_of(root, "nEMO", "samples"), "nEMO"), []
    for _, cells in read_cells(listed, COLUMNS).sort_values("file_id").iterrows():
        rows.append(
            {
                "path": clip_of(cells["file_id"], found, listed),
                "speaker": cells["speaker_id"],  # some begin with a blank in the file
                "emotion": emotion_of(str(cells["emotion"]).lower(), EMOTIONS, f"{listed}, {cells['file_id']}"),
                "sex": SEXES.get(str(cells["gender"]).lower()),
                "text": cells.get("raw_text"),
            }
        )
    return as_table(rows)
