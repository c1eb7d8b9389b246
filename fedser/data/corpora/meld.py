"""MELD, the Multimodal EmotionLines Dataset: English, dialogs of the series Friends, 13,708 utterances, 7 emotions.

Poria et al., ACL 2019. Lists `train_sent_emo.csv`, `dev_…`, `test_…`; clips like `train_splits/dia0_utt0`, whose
numbers begin anew in each part. The corpus has videos: their sound has to be extracted beside them.
"""

from pathlib import Path

import pandas as pd

from fedser.data.corpora import as_table, clips, emotion_of
from fedser.data.corpora.cells import clip_of, place_of, read_cells
from fedser.errors import InputError

EMOTIONS = {
    "anger": "anger", "disgust": "disgust", "fear": "fear", "joy": "happiness", "neutral": "neutral",
    "sadness": "sadness", "surprise": "surprise",
}  # fmt: skip
PARTS = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}
ABSENT = {("train", "dia125_utt3"), ("dev", "dia110_utt7")}  # listed, but published broken or not at all
COLUMNS = ("Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")


def read(root: Path) -> pd.DataFrame:
    """The utterances that the lists in `root` name, with the columns split (train, validation, test), text and dialog.

    Raises InputError for a list or folder that is not there, videos without extracted sound, and a clip that is
    listed and not there.
    """
    rows = [row for part in PARTS for row in _part(root, part)]
    return as_table(sorted(rows, key=lambda row: (row["split"], row["path"])))


def _part(root: Path, part: str) -> list[dict]:
    listed = place_of(root, "MELD", f"{part}_sent_emo.csv", f"{part}/{part}_sent_emo.csv")
    folder = place_of(root, "MELD", PARTS[part], f"{part}/{PARTS[part]}")
    if not any(folder.rglob("*.wav")) and not any(folder.rglob("*.flac")):
        raise InputError(
            f"MELD: no .wav in {folder}; extract the videos' sound there, e.g. in that folder: "
            'for f in *.mp4; do ffmpeg -i "$f" -ac 1 -ar 16000 "${f%.mp4}.wav"; done'
        )
    found, rows = clips(folder, "MELD"), []
    for _, cells in read_cells(listed, COLUMNS).iterrows():
        name = f"dia{cells['Dialogue_ID']}_utt{cells['Utterance_ID']}"
        if (part, name) in ABSENT and name not in found:
            continue
        rows.append(
            {
                "path": clip_of(name, found, listed),
                "speaker": cells["Speaker"],
                "emotion": emotion_of(cells["Emotion"], EMOTIONS, f"{listed}, {name}"),
                "sex": None,
                "split": "validation" if part == "dev" else part,
                "text": cells["Utterance"],
                "dialog": f"{part} {cells['Dialogue_ID']}",
            }
        )
    return rows
