"""A corpus: one folder per speaker, files named by their emotion and a number (anger-01.wav)."""

from pathlib import Path

import pandas as pd

from fedser.errors import InputError


def read(root: Path) -> pd.DataFrame:
    """One row per clip: path, speaker, emotion, and sex or whatever else is known."""
    files = sorted(root.glob("*/*.wav")) + sorted(root.glob("*/*.flac"))
    if not files:
        raise InputError(f"{root}: no SPEAKER/EMOTION-NUMBER.wav below it; correct dataset.root=…")
    rows = [{"path": str(file), "speaker": file.parent.name, "emotion": file.stem.split("-")[0]} for file in files]
    return pd.DataFrame(rows).sort_values("speaker", kind="stable", ignore_index=True)
