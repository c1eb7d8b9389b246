"""What an adversary infers from a trained model: the command `fedser-privacy`.

    fedser-privacy outputs/RUN                              # sex and speaker, from embeddings
    fedser-privacy outputs/RUN --column age                 # another column of the corpus's table
    fedser-privacy outputs/RUN --shadow outputs/OTHER       # and from clients' updates, learnt from another run's

The findings go to `RUN/privacy.json`, where `fedser-report` finds them. The code is the adversary's, for whoever
studies a run: it looks at clips in one place, which the federation itself never does. Definitions: docs/privacy.md.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from fedser.errors import FedserError

log = logging.getLogger(__name__)


def study(run: str | Path, column: str = "sex", shadows: Sequence[str | Path] = ()) -> dict:
    """What is inferred of one finished run, also written to its `privacy.json`; see `fedser.privacy.findings.written`.

    column: of the corpus's table, the same in all clips of a speaker. shadows: runs whose clients' updates the
    adversary learns from, beside the run's own other clients.

    Raises InputError for a folder without a finished run, a column that is missing, has one value or differs within a
    speaker, and for too few speakers.
    """
    from fedser.privacy import embeddings, findings, updates

    subject = embeddings.Subject.of(Path(run))
    found, kept = [], bool(subject.settings.checkpoint.updates)
    if kept and not shadows and (told := updates.refusal(subject)):
        log.warning("%s They are left out.", told)
    elif kept or shadows:
        others = [embeddings.Subject.of(Path(each)) for each in shadows]
        found = updates.findings(subject, others, column)
    found = [*embeddings.findings(subject, column), *found]
    return findings.written(subject.folder, subject.summary, column, found)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `fedser-privacy`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="fedser-privacy", description=__doc__.split("\n\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of finished runs")
    parser.add_argument("--column", default="sex", help="what is inferred beside the speaker (default: sex)")
    parser.add_argument("--shadow", nargs="+", default=[], type=Path, metavar="RUN", help="runs to learn updates from")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    from fedser.runs.folder import run_folders

    try:
        for folder in run_folders(chosen.runs):
            found = study(folder, chosen.column, run_folders(chosen.shadow) if chosen.shadow else ())
            print(folder.name, *(f"    {each['text']}" for each in found["findings"]), sep="\n")
    except FedserError as error:
        print(f"fedser-privacy: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0
