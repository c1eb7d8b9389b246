"""CREMA-D, the Crowd-sourced Emotional Multimodal Actors Dataset: English, acted, 91 speakers, 7,442 clips, 6 emotions.

Cao et al., IEEE Transactions on Affective Computing 5(4), 2014. Names like `1001_IEO_ANG_HI` in AudioWAV: actor,
sentence, intended emotion, level. Beside it lie VideoDemographics.csv (actors' sexes) and
processedResults/summaryTable.csv (what the crowd heard).
"""

import logging
from pathlib import Path
from typing import Literal

import pandas as pd

from fedser.data.corpora import as_table, emotion_of, read_names, warn_left_out
from fedser.data.corpora.cells import SEXES, place_of, read_cells
from fedser.errors import InputError

log = logging.getLogger(__name__)

EMOTIONS = {"ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happiness", "NEU": "neutral", "SAD": "sadness"}
VOTES = {code[0]: name for code, name in EMOTIONS.items()}
COLUMNS = {"voice": "VoiceVote", "multimodal": "MultiModalVote"}
SILENT = "1076_MTI_SAD_XX"  # a published clip with nothing in it


def read(root: Path, labels: Literal["intended", "voice", "multimodal"] = "intended") -> pd.DataFrame:
    """The utterances under `root`, with the columns text and level.

    labels: what the actor intended, or what most of the crowd heard, or saw and heard; clips without a majority are
    left out. Raises InputError as `read_names` does, and for a clip that the table of votes lacks.
    """
    table = place_of(root, "CREMA-D", "processedResults/summaryTable.csv") if labels in COLUMNS else None
    votes = _column(table, "FileName", COLUMNS[labels]) if table else {}
    sexes, rows, torn = _sexes(root), [], 0
    name = r"(?P<speaker>\d{4})_(?P<text>[A-Z]{3})_(?P<emotion>[A-Z]{3})_(?P<level>[A-Z]+)"
    for path, match in read_names(root, name, "like 1001_IEO_ANG_HI", "CREMA-D"):
        clip = match[0].upper()
        if clip == SILENT:
            continue
        if table and clip not in votes:
            raise InputError(f"{table}: says nothing of {path}; get the whole table, or set dataset.labels=intended")
        if table and ":" in votes[clip]:  # A:D, as many votes for each
            torn += 1
            continue
        emotion = emotion_of(votes[clip], VOTES, f"{table}, {clip}") if table else None
        rows.append(
            {
                "path": path,
                "speaker": match["speaker"],
                "emotion": emotion or emotion_of(match["emotion"].upper(), EMOTIONS, path),
                "sex": sexes.get(match["speaker"]),
                "text": match["text"].upper(),
                "level": match["level"].upper(),
            }
        )
    warn_left_out("CREMA-D", torn, f"without a majority in {COLUMNS.get(labels)}")
    return as_table(rows)


def _column(file: Path, key: str, value: str) -> dict[str, str]:
    cells = read_cells(file, (key, value)).dropna(subset=[key, value])
    return dict(zip(cells[key].str.upper(), cells[value], strict=True))


def _sexes(root: Path) -> dict[str, str]:
    file = root / "VideoDemographics.csv"
    if not file.is_file():
        log.warning("CREMA-D: there is no %s, so nobody's sex is known", file)
        return {}
    return {actor: SEXES.get(sex.lower()) for actor, sex in _column(file, "ActorID", "Sex").items()}
