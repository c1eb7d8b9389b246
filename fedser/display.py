"""The terminal: a progress bar over rounds, and at the end a box with the table, the times and the place."""

import math
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

UNSEEN = "unseen/"  # before the kind: of speakers whom nobody trains on
KINDS = ("original", "randomised", "adversarial", "randomised_adversarial", "adaptive")
TESTED = tuple(f"uar/{kind}" for kind in KINDS)  # and not uar/validation
SECONDS_PER_LINE = 10  # of progress, in a file
WIDE = 4  # attacks that fit beside each other


class Display:
    """Progress goes to stderr, the result to stdout."""

    def __init__(self):
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=Console(stderr=True),
        )
        self._uar = ""

    @contextmanager
    def rounds(self, name: str, total: int, plan, done: int = 0):
        """The plan and a progress bar, alive inside the block; `done` rounds lie behind."""
        self._progress.console.print(f"[bold]{name}[/]\n{plan}", highlight=False)
        self._total, self._each, self._last = total, plan.seconds_per_round, time.monotonic()
        self._task = self._progress.add_task("round", total=total, completed=done, status="", left=self._left(done))
        with self._progress:
            yield

    def round(self, row: dict) -> None:
        """One row of the history is complete."""
        if "uar/original" in row:
            worst = min((key for key in row if key.startswith(TESTED)), key=row.get)
            self._uar = f"UAR {row['uar/original']:.1%}"
            if worst != "uar/original":
                self._uar += f", {worst.split('/')[-1]} {row[worst]:.1%}"
            if f"uar/{UNSEEN}original" in row:
                self._uar += f", unseen {row[f'uar/{UNSEEN}original']:.1%}"
        now = time.monotonic()
        took, self._last = now - self._last, now
        self._each = took if self._each is None else (self._each + took) / 2
        loss = f"loss {row['train/loss']:.3f}  " if "train/loss" in row else ""
        status = f"{loss}{self._uar}"
        self._progress.update(self._task, completed=row["round"], status=status, left=self._left(row["round"]))

    @contextmanager
    def evaluation(self, total: int):
        """A progress bar over the parts of an evaluation; yields what is called when something of them is done.

        Where nobody watches it, a line now and then.
        """
        console, said = self._progress.console, time.monotonic()
        task = self._progress.add_task("evaluation", total=total, status="", left="")

        def shown(name: str, done: float, seconds: float) -> None:
            nonlocal said
            left = f"about {duration(seconds / done * (total - done))} left" if done < total else ""
            self._progress.update(task, completed=done, status=name, left=left)
            if not console.is_terminal and time.monotonic() - said >= SECONDS_PER_LINE:
                console.print(f"evaluation {int(done)}/{total} {name} {left}", highlight=False, soft_wrap=True)
                said = time.monotonic()

        with nullcontext() if self._progress.live.is_started else self._progress:
            yield shown

    def _left(self, done: int) -> str:
        """The time left, by the plan's estimate corrected by the rounds so far."""
        if self._each is None or done >= self._total:
            return ""
        return f"about {duration(self._each * (self._total - done))} left"

    def result(self, folder: Path, summary: dict, note: str = "") -> None:
        """The box: UAR in % by condition and attack."""
        lines = Table.grid()
        lines.add_row(uars(summary))
        if aucs := [f"{key[13:]} {summary[key]:.3f}" for key in summary if key.startswith("detector/auc/")]:
            alarms = f"{summary['detector/false_alarms']:.1%} false alarms"
            lines.add_row(f"detector: AUC {', '.join(aucs)}; {alarms}")
        if "privacy" in summary:
            lines.add_row(f"privacy: {summary['privacy']['text']}")
        lines.add_row("")
        if note:
            lines.add_row(note)
        each = f" ({summary['seconds_per_round']:g} s a round)" if "seconds_per_round" in summary else ""
        reused = ", model reused" if summary.get("reused") else ""
        size = f"{summary['rounds']} rounds, {summary['clients']} clients"
        lines.add_row(f"{size}, {summary['seconds']:.0f} s{each}{reused}")
        console = Console()
        console.print(Panel(lines, title=summary["name"], expand=False))
        console.print(f"{folder}", soft_wrap=True, highlight=False)  # whole, so that it can be copied


def uars(summary: dict) -> Table:
    """UAR in % by condition and attack: attacks side by side, or below each other where they are many.

    Below them those of unseen speakers, where there are any.
    """
    every = [kind for start in ("", UNSEEN) for kind in (f"{start}{kind}" for kind in KINDS)]
    names = [(kind, key.removeprefix(f"uar/{kind}")) for kind in every for key in summary if _is(key, kind)]
    attacks = ["", *dict.fromkeys(attack[1:] for _, attack in names if attack)]
    kinds = [kind for kind in every if any(name[0] == kind for name in names)]

    def cell(kind: str, attack: str) -> str:
        uar = summary.get(f"uar/{kind}/{attack}" if attack else f"uar/{kind}")
        return "–" if uar is None else f"{100 * uar:.2f}"

    rows = [["test data", *(attack or "no attack" for attack in attacks)]]
    rows += [[kind.replace("_", " ").replace("/", " "), *(cell(kind, attack) for attack in attacks)] for kind in kinds]
    if len(attacks) > 1 + WIDE:
        (_, *heads), *rows = zip(*rows, strict=True)
        rows.insert(0, ("attack", *(head.replace(" ", "\n") for head in heads)))
    table = Table(rows[0][0], title="UAR [%]", title_justify="left", box=None, pad_edge=False)
    for head in rows[0][1:]:
        table.add_column(head, justify="right")
    for row in rows[1:]:
        table.add_row(*row)
    return table


def _is(key: str, kind: str) -> bool:
    """Whether a metric is a UAR of this kind of test data."""
    return key == f"uar/{kind}" or key.startswith(f"uar/{kind}/")


def duration(seconds: float) -> str:
    """4 s, 2.5 min, 3 h: two digits, for people."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{float(f'{seconds / size:.2g}'):g} {unit}"
    return f"{float(f'{seconds:.2g}'):g} s"


def size(count: float) -> str:
    """Bytes for people: 59.5 MB."""
    power = min(int(math.log10(max(count, 1)) / 3), 3)
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB')[power]}"
