"""A report as PDF: the verdict, the figures and the tables on pages of A4, without a browser."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mdl_physpre.report.figures.style import INK, Figure, plain, styled
from mdl_physpre.report.tables.page import Table
from mdl_physpre.utils.files import replacing
from mdl_physpre.utils.text_table import text_table

A4 = (8.27, 11.69)  # inches
MARGIN = 0.08
COLUMNS = 145  # characters of a line in the small fixed font
LINES = 104


def write_pdf(
    path: Path, name: str, facts: str, notes: Sequence[str], tables: Sequence[Table], figures: Sequence[Figure]
) -> None:
    """Write the pages; figures as they are on the page, at 160 dots an inch."""
    from matplotlib.backends.backend_pdf import PdfPages

    lines = [name, facts, "", *(line for note in notes for line in [*textwrap.wrap(note, COLUMNS), ""])]
    for table in tables:
        lines += [*_table_lines(table), ""]
    title = {"Title": f"{name}: report"}
    with styled() as plt, replacing(path) as temporary, PdfPages(temporary, metadata=title) as pdf:
        for start in range(0, len(lines), LINES):
            _text_page(plt, pdf, lines[start : start + LINES])
        for figure in figures:
            _figure_page(plt, pdf, figure)


def _table_lines(table: Table) -> list[str]:
    """A table in a fixed font; where it is too wide, a line for each cell."""
    lines = [table.caption]
    aligned = text_table([table.head, *table.rows], words=len(table.head)).splitlines()
    if max(map(len, aligned)) <= COLUMNS:
        lines += aligned
    else:
        for row in table.rows:
            lines.append("  " + row[0])
            for title, cell in zip(table.head[1:], row[1:]):
                lines += textwrap.wrap(f"{title}: {cell}", COLUMNS, initial_indent="    ", subsequent_indent="      ")
    return [*lines, *textwrap.wrap(table.notes, COLUMNS)]


def _text_page(plt: Any, pdf: Any, lines: Sequence[str]) -> None:
    figure = plt.figure(figsize=A4, layout="none", facecolor="white")
    text = plain("\n".join(lines))
    figure.text(MARGIN, 1 - MARGIN / 1.4, text, va="top", family="monospace", fontsize=5.6, linespacing=1.35, color=INK)
    pdf.savefig(figure, facecolor="white")
    plt.close(figure)


def _figure_page(plt: Any, pdf: Any, drawn: Figure) -> None:
    picture = plt.imread(drawn.png)
    height, width = picture.shape[:2]
    figure = plt.figure(figsize=A4, layout="none", facecolor="white")
    wide = 1 - 2 * MARGIN
    high = wide * A4[0] / A4[1] * height / width
    if high > 0.78:
        wide, high = wide * 0.78 / high, 0.78
    axis = figure.add_axes((MARGIN, 0.92 - high, wide, high))
    axis.imshow(picture)
    axis.set_axis_off()
    figure.text(MARGIN, 0.945, plain(drawn.title), fontsize=12, color=INK)
    caption = "\n".join(textwrap.wrap(drawn.caption, 110))
    figure.text(MARGIN, 0.90 - high, plain(caption), va="top", fontsize=8, color=INK)
    pdf.savefig(figure, facecolor="white", dpi=160)
    plt.close(figure)
