"""Runs → a page to read, with its figures and tables as files.

    fedser-report outputs/emodb-pgd                   # one run
    fedser-report multirun/a multirun/b -o evidence   # every run found under these folders

>>> from fedser import report
>>> runs = report.load(["outputs"])
>>> report.table(runs)                                # a pandas.DataFrame, one row per run
>>> report.write(runs, "report")                      # index.html, figures/*.png, *.svg, tables/*.csv, *.md, *.tex

A *condition* is what a model was tested on: `original`, `randomised`, `adversarial/<attack>`,
`randomised_adversarial/<attack>` or `adaptive/<attack>`. UARs are fractions in [0, 1] in Python and in CSV, per cent
where people read them. Data flow one way: `analysis` (runs → models → estimates → comparisons) → `tables`, `charts`,
`text` → `output`, which fills the templates and writes the files.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fedser.errors import FedserError


def load(paths):
    """The runs in these folders and below them, in the order given; see `fedser.report.analysis.runs.load`."""
    from fedser.report.analysis.runs import load

    return load(paths)


def table(runs):
    """One row per run, as a `pandas.DataFrame`; see `fedser.report.overview.table`."""
    from fedser.report.overview import table

    return table(runs)


def show(runs):
    """Prints the table for people."""
    from fedser.report.overview import show

    show(runs)


def write(runs, folder):
    """Writes the page, its figures and its tables, and returns their paths; see `fedser.report.output.write`."""
    from fedser.report.output import write

    return write(runs, folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `fedser-report`."""
    parser = argparse.ArgumentParser(
        prog="fedser-report",
        description="A page with the figures and tables of finished runs, and the table on screen.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run's folder, or one with runs below it")
    parser.add_argument("-o", "--output", type=Path, default=Path("report"), metavar="FOLDER", help="default: report")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    # NumPy, which is not imported yet, gets one thread: the resamples' products are so small that several threads
    # wait for each other most of the time, twice as long on a busy machine.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        runs = load(options.runs)
        written = write(runs, options.output)
        show(runs)
    except FedserError as error:
        print(f"fedser-report: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    print(f"written: {written[0]}, and {len(written) - 1} files of its figures and tables")
    return 0
