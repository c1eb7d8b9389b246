"""Tables for papers: LaTeX with booktabs' rules, as wide as a page."""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from fedser.report.tabular import LONG, Cell, Table

# What LaTeX takes for commands, and signs that its fonts lack.
SIGNS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "ε": r"$\varepsilon$", "σ": r"$\sigma$", "δ": r"$\delta$",
    "±": r"$\pm$", "×": r"$\times$", "·": r"$\cdot$", "∞": r"$\infty$", "≤": r"$\leq$", "≥": r"$\geq$", "‖": r"$\|$",
    "−": r"$-$", "–": "--", "→": r"$\to$", "₀": "$_0$", "₁": "$_1$", "…": r"\dots{}", "<": r"$<$", ">": r"$>$",
}  # fmt: skip

SIZES = {"": (5.0, 6), "\\small": (4.6, 4), "\\footnotesize": (4.1, 3), "\\scriptsize": (3.6, 2)}
"""Sizes of type, each with the mean width of a sign and with \\tabcolsep, in points."""
COLUMN, PAGE, SIDEWAYS = 345, 490, 680  # points across a one-column page, a two-column one, and one on its side
NAME, SENTENCE = 24, 60  # after so many signs the lines of long names and of sentences are broken


@dataclass(frozen=True)
class Layout:
    """How a table is made to fit: `broken` are the columns whose lines are, each with its width in signs."""

    widths: Sequence[int]  # of each column, in signs
    broken: dict[int, int]
    heads: Sequence[Sequence[str]]  # the lines of each heading

    def points(self, size: str) -> float:
        sign, gap = SIZES[size]
        return sum(self.widths) * sign + 2 * gap * len(self.widths)

    @property
    def size(self) -> str:
        """The largest type in which it fits."""
        across = SIDEWAYS if self.sideways else PAGE
        return next((size for size in SIZES if self.points(size) <= across), "\\scriptsize")

    @property
    def wide(self) -> bool:
        return self.points("") > COLUMN

    @property
    def sideways(self) -> bool:
        return self.points("\\scriptsize") > PAGE


def latex(table: Table) -> str:
    """A `table`, or a `longtable` where there are many rows; the first line names the packages that it needs."""
    layout = _layout(table)
    long = len(table.rows) > LONG
    packages = ["booktabs", "array", "makecell", *(["longtable"] * long), *(["pdflscape"] * layout.sideways)]
    lines = (_long if long else _short)(table, layout)
    if layout.sideways:
        lines = ["\\begin{landscape}", *lines, "\\end{landscape}"]
    return "\n".join([f"% \\usepackage{{{', '.join(packages)}}}", *lines]) + "\n"


def _layout(table: Table) -> Layout:
    widths, broken, heads = [], {}, []
    for number, heading in enumerate(table.columns):
        cells = [line for row in table.cells for line in (row[number].text, *row[number].notes)]
        width = max(map(len, cells), default=0)
        most = SENTENCE if number in table.wrapped else NAME
        if width > most:
            width = broken[number] = most
        heads.append(textwrap.wrap(heading, max([width, *map(len, heading.split())])) or [""])
        widths.append(max([width, *map(len, heads[-1])]))
    return Layout(widths, broken, heads)


def _short(table: Table, layout: Layout) -> list[str]:
    name = "table*" if layout.wide else "table"
    notes = ["", "\\smallskip", _notes(table)] if table.notes else []
    return [
        f"\\begin{{{name}}}",
        "\\centering",
        _caption(table),
        _label(table),
        *_type(layout),
        f"\\begin{{tabular}}{{{_columns(table, layout)}}}",
        *_head(table, layout),
        *_body(table, layout),
        "\\bottomrule",
        "\\end{tabular}",
        *notes,
        f"\\end{{{name}}}",
    ]


def _long(table: Table, layout: Layout) -> list[str]:
    """In braces, so that its type is its own."""
    head = _head(table, layout)
    return [
        "{",
        *_type(layout),
        f"\\begin{{longtable}}{{{_columns(table, layout)}}}",
        _caption(table) + _label(table) + r" \\",
        *head,
        "\\endfirsthead",
        *head,
        "\\endhead",
        "\\bottomrule",
        "\\endfoot",
        *_body(table, layout),
        "\\end{longtable}",
        *([_notes(table)] if table.notes else []),
        "}",
    ]


def _type(layout: Layout) -> list[str]:
    return [layout.size, f"\\setlength{{\\tabcolsep}}{{{SIZES[layout.size][1]}pt}}"] if layout.size else []


def _caption(table: Table) -> str:
    """Without the number that the title may begin with: a paper counts its tables itself."""
    title = re.sub(r"^Table \d+\s*", "", table.title).strip("()")
    return f"\\caption{{{escape(f'{title}. {table.caption}' if title else table.caption)}}}"


def _label(table: Table) -> str:
    return f"\\label{{tab:{re.sub(r'[^a-z0-9]+', '-', table.name.lower())}}}"


def _notes(table: Table) -> str:
    return "{\\footnotesize\\raggedright " + " ".join(f"{escape(note)}\\par" for note in table.notes) + "}"


def _columns(table: Table, layout: Layout) -> str:
    """`l` for words, `r` for numbers, a paragraph where lines are broken."""
    paragraph = ">{{\\raggedright\\arraybackslash}}p{{{:g}em}}"  # a sign is about half an em wide
    plain = [_side(number, table) for number in range(len(table.columns))]
    return "".join(
        paragraph.format(layout.broken[n] / 2) if n in layout.broken else side for n, side in enumerate(plain)
    )


def _side(column: int, table: Table) -> str:
    return "l" if column < table.words else "r"


def _head(table: Table, layout: Layout) -> list[str]:
    heads = [_stacked(map(escape, lines), "b" + _side(n, table)) for n, lines in enumerate(layout.heads)]
    return ["\\toprule", *_groups(table), _row(heads), "\\midrule"]


def _groups(table: Table) -> list[str]:
    if not table.groups:
        return []
    heads, rules, column = [], [], 1
    for name, span in table.groups:
        heads.append(f"\\multicolumn{{{span}}}{{c}}{{{escape(name)}}}")
        if name:
            rules.append(f"\\cmidrule(lr){{{column}-{column + span - 1}}}")
        column += span
    return [_row(heads), " ".join(rules)]


def _body(table: Table, layout: Layout) -> list[str]:
    lines = []
    for number, cells in enumerate(table.cells):
        lines += ["\\midrule"] if number and table.marks.get(number) == "first" else []
        lines.append(_row(_cell(cell, n, table, layout) for n, cell in enumerate(cells)))
    return lines


def _row(cells) -> str:
    return " & ".join(cells) + r" \\"


def _cell(cell: Cell, column: int, table: Table, layout: Layout) -> str:
    """Its notes stand below it in small type, as on the page."""
    text = escape(cell.text)
    text = f"\\textbf{{{text}}}" if cell.kind == "significant" else text
    text = "{}" + text if text.startswith(("[", "*")) else text  # after a \\ these would be its arguments
    notes = [f"{{\\scriptsize {escape(note)}}}" for note in cell.notes]
    if column in layout.broken:
        return "\\newline ".join([text, *notes])
    return _stacked([text, *notes], "t" + _side(column, table))


def _stacked(lines, place: str) -> str:
    """Lines in one cell; `place` is which of them stands on the row's line, and their side."""
    several = list(lines)
    return several[0] if len(several) == 1 else f"\\makecell[{place}]{{" + r"\\".join(several) + "}"


def escape(text: str) -> str:
    return "".join(SIGNS.get(sign, sign) for sign in text)
