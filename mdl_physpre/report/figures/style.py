"""One style for all figures: colours, dashes and markers of names, inks, and how a figure is written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

INK, SOFT, FAINT, SHADE = "#1a1f24", "#5c6670", "#c9ced4", "#eef0f2"

# Okabe and Ito's colours, told apart by people with any colour vision, each with a dash of its own for print in grey
STYLES: dict[str, dict[str, Any]] = {
    "EAM": {"color": INK, "linestyle": ":"},
    "teacher": {"color": SOFT, "linestyle": ":"},
    "baseline": {"color": "#d55e00", "linestyle": "--"},
    "pretrain": {"color": "#0072b2", "linestyle": "-"},
    "sam": {"color": "#009e73", "linestyle": "-."},
    "hybrid": {"color": "#cc79a7", "linestyle": (0, (5, 1, 1, 1, 1, 1))},
    "replay": {"color": "#b07d00", "linestyle": (0, (8, 2))},
    "pretrain, before finetuning": {"color": "#56b4e9", "linestyle": "-."},
}
OTHERS: tuple[dict[str, Any], ...] = (
    {"color": "#009e73", "linestyle": (0, (5, 1, 1, 1, 1, 1))},
    {"color": "#cc79a7", "linestyle": (0, (1, 1))},
    {"color": "#b07d00", "linestyle": (0, (8, 2))},
    {"color": "#0072b2", "linestyle": "-"},
    {"color": "#d55e00", "linestyle": "--"},
    {"color": "#56b4e9", "linestyle": "-."},
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

# what a colour becomes on a dark page; shades of grey are turned over, colours are lightened
ON_DARK = {
    INK: "#e8eaed", SOFT: "#aab2bb", FAINT: "#4a525b", SHADE: "#262c33",
    "#d55e00": "#ff8b3d", "#0072b2": "#57a9e8", "#009e73": "#2fc79a", "#cc79a7": "#dd96bb", "#b07d00": "#e0ab2e",
    "#56b4e9": "#86cbf3",
}  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """A figure that was written: ``name``.svg and ``name``.png in ``folder``, with a text in place of the picture."""

    folder: Path
    name: str
    title: str
    alt: str
    caption: str

    @property
    def svg(self) -> Path:
        return self.folder / f"{self.name}.svg"

    @property
    def png(self) -> Path:
        return self.folder / f"{self.name}.png"


def styles_of(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """A colour and a dash for each name; those without their own get free ones."""
    names = list(names)
    taken = {STYLES[name]["color"] for name in names if name in STYLES}
    free = cycle([style for style in OTHERS if style["color"] not in taken] or OTHERS)
    return {name: dict(STYLES[name] if name in STYLES else next(free)) for name in names}


def pyplot() -> Any:
    """matplotlib's pyplot, drawing to files alone."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


@contextmanager
def styled() -> Iterator[Any]:
    """pyplot with the style of this package's figures."""
    plt = pyplot()
    settings = {
        "font.size": 9, "axes.titlesize": 9.5, "axes.labelsize": 9, "legend.fontsize": 8, "xtick.labelsize": 8,
        "ytick.labelsize": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8,
        "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
        "axes.titlecolor": INK, "legend.frameon": False, "legend.labelcolor": INK, "lines.linewidth": 1.6,
        "axes.facecolor": "none", "figure.facecolor": "none", "savefig.facecolor": "none", "svg.hashsalt": "physpre",
        "figure.constrained_layout.use": True, "grid.color": FAINT, "grid.linewidth": 0.6,
    }  # fmt: skip
    with plt.rc_context(settings):
        yield plt


def plain(text: Any) -> str:
    """Text from data as matplotlib shall show it: dollar signs start no formula."""
    return str(text).replace("$", r"\$")


def safe_name(name: str) -> str:
    """A name as part of a file's name."""
    return "".join(c if c.isalnum() else "-" for c in name)


def pair_panels(
    plt: Any, pairs: Sequence[str], widths: Sequence[float] = (4.6, 3.2, 2.75), height: float = 2.7, below: float = 0.3
) -> tuple[Any, list[Any]]:
    """A figure with a panel for each pair of elements, at most three in a row, and the panels with their titles.

    ``widths`` : of a panel where one, two or three stand in a row, inches. ``height``, ``below`` : of a row, and of the
    legend.
    """
    columns = min(len(pairs), 3) or 1
    rows = -(-len(pairs) // columns) or 1
    size = (widths[columns - 1] * columns, height * rows + below)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for axis in axes.flat[len(pairs) :]:
        axis.set_visible(False)
    for axis, pair in zip(axes.flat, pairs):
        axis.set_title(pair.replace("-", "–"))
    return figure, list(axes.flat[: len(pairs)])


def save(figure: Any, path: str | Path) -> list[Path]:
    """Write a figure as PNG on white and as SVG without a background, whatever the ending of ``path``; close it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.draw_without_rendering()  # lays it out once for both
    figure.set_layout_engine("none")
    png, svg = path.parent / f"{path.stem}.png", path.parent / f"{path.stem}.svg"
    figure.savefig(png, dpi=160, facecolor="white")
    figure.savefig(svg, dpi=160, metadata={"Date": None})
    pyplot().close(figure)
    return [png, svg]


def for_page(svg: str) -> str:
    """An SVG file's text with the colours that it takes on a dark page; print stays on white."""
    rules = "".join(
        f'[style*="stroke: {light}"]{{stroke:{dark} !important}}[style*="fill: {light}"]{{fill:{dark} !important}}'
        for light, dark in ON_DARK.items()
    )
    style = f"<style>@media screen and (prefers-color-scheme: dark){{{rules}}}</style>"
    return re.sub(r"(<svg\b[^>]*>)", lambda found: found.group(1) + style, svg, count=1)
