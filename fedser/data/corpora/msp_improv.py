"""MSP-IMPROV: English, dyadic improvisations around fixed sentences, 12 speakers in six sessions, 8,438 turns.

Busso et al., IEEE Transactions on Affective Computing 8(1), 2017. Names like
`session1/S01A/P/MSP-IMPROV-S01A-F01-P-FM01.wav`: scenario, speaker, kind of turn. The crowd's majority stands in
Evaluation.txt, as of the videos: `UTD-IMPROV-S01A-F01-P-FM01.avi; A; …`.
"""

import re
from pathlib import Path

import pandas as pd

from fedser.data.corpora import as_table, emotion_of, read_names, warn_left_out
from fedser.data.corpora.cells import place_of
from fedser.errors import InputError

EMOTIONS = {"A": "anger", "H": "happiness", "N": "neutral", "O": "other", "S": "sadness"}
UNDECIDED = "X"


def read(root: Path) -> pd.DataFrame:
    """The turns under `root` that the crowd agrees about, with the columns session, scenario and kind.

    Raises InputError as `read_names` does, and for a turn without a line in Evaluation.txt.
    """
    listed = place_of(root, "MSP-IMPROV", "Evaluation.txt", "Labels/Evaluation.txt")
    text = listed.read_text(encoding="utf-8", errors="replace")
    labels = dict(re.findall(r"^UTD-IMPROV-(\S+?)\.avi; *(\w)", text, re.MULTILINE))
    rows, undecided = [], 0
    name = r"MSP-IMPROV-(?P<turn>(?P<scenario>S\d\d\w)-(?P<speaker>[FM]\d\d)-(?P<kind>\w)-\w+)"
    for path, match in read_names(root, name, "like MSP-IMPROV-S01A-F01-P-FM01", "MSP-IMPROV"):
        if (code := labels.get(match["turn"].upper())) is None:
            raise InputError(f"{listed}: says nothing of {path}; get the whole file, or move the clip away")
        if code == UNDECIDED:
            undecided += 1
            continue
        speaker = match["speaker"].upper()
        rows.append(
            {
                "path": path,
                "speaker": speaker,
                "emotion": emotion_of(code, EMOTIONS, f"{listed}, {match['turn']}"),
                "sex": speaker[0].lower(),
                "session": f"session{int(speaker[1:])}",
                "scenario": match["scenario"].upper(),
                "kind": match["kind"].upper(),
            }
        )
    warn_left_out("MSP-IMPROV", undecided, "the crowd differs (X)")
    if not rows:
        raise InputError(f"{listed}: the crowd agrees about none of the turns under {root}; correct dataset.root=…")
    return as_table(rows)
