"""Figure of a stress test: the breaking points of each arm, and how many structures are whole along the scale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mdl_physpre.dynamics.verdicts.survival import BreakingStatistics, Observation, kaplan_meier
from mdl_physpre.report.figures.style import INK, Figure, plain, safe_name, save, styled, styles_of
from mdl_physpre.report.tables.breaking import median_words, shown_unit, titled
from mdl_physpre.runs.summary import Summary

BANDS = 2  # arms whose bands are drawn: more hide each other
SPREAD = 0.5  # of the rows of an arm's networks, in rows of arms


def draw_breaking(summary: Summary, test: str, folder: Path) -> Figure:
    """On the left a row of points for each network; on the right the fraction that is whole, a curve for each arm."""
    arms = {name: arm for name, arm in summary.arms.items() if test in arm.stress}
    styles = styles_of(arms)
    some = next(iter(arms.values())).stress[test]
    unit, factor = shown_unit(some.unit)
    several = all(len(arm.stress[test].networks) > 1 for arm in arms.values())
    with styled() as plt:
        height = float(np.clip(1.5 + 0.66 * len(arms), 2.9, 6.5))
        figure, (strip, curves) = plt.subplots(1, 2, figsize=(9.6, height), width_ratios=(1.25, 1))
        for row, (name, arm) in enumerate(arms.items()):
            each = [[o._replace(value=o.value * factor) for o in n.breaking_points(test)] for n in arm.networks]
            _strip(strip, row, [own for own in each if own], styles[name]["color"])
            _median(strip, row, arm.stress[test], factor)
            curve = kaplan_meier([o for own in each for o in own], unit)
            value = np.array([*curve.value, curve.end])
            whole, low, high = (np.array([*one, one[-1]]) for one in (curve.survival, curve.low, curve.high))
            if len(arms) <= BANDS:
                curves.fill_between(value, low, high, step="post", color=styles[name]["color"], alpha=0.13, linewidth=0)
            curves.step(value, whole, where="post", label=plain(name), **styles[name])
        strip.set_yticks(range(len(arms)), [plain(name) for name in arms])
        strip.set(ylim=(len(arms) - 0.4, -0.6), xlabel=f"{some.quantity} ({unit})")
        strip.grid(axis="x")
        curves.axhline(0.5, color=INK, linewidth=0.7, linestyle=":")
        curves.set(xlabel=f"{some.quantity} ({unit})", ylabel="fraction whole", ylim=(0, 1.04))
        strip.margins(x=0.04)
        curves.set_xlim(strip.get_xlim())
        curves.legend(loc="best")
        curves.grid(axis="y")
        _legend(plt, figure, several)
        save(figure, folder / f"breaking-{safe_name(test)}")
    said = "; ".join(f"{name} {median_words(arm.stress[test])}" for name, arm in arms.items())
    return Figure(
        folder, f"breaking-{safe_name(test)}", titled(test),
        f"Breaking points of each structure with each network, by arm, and the fraction whole. Medians: {said}.",
        f"Left: the {some.quantity} at which each structure broke, a row for each network. Right: the fraction of "
        "structures that are whole (Kaplan–Meier) with all networks of an arm"
        + ("; bands: 95 %." if len(arms) <= BANDS else ".")
        + ("" if several else " One network of an arm says nothing on the spread between trainings."),
    )  # fmt: skip


def _strip(axis: Any, row: int, networks: list[list[Observation]], colour: str) -> None:
    """The points of the networks of one arm, a line each: full where a structure broke, an open arrow where not."""
    offsets = np.linspace(-0.5, 0.5, len(networks)) * SPREAD if len(networks) > 1 else [0.0]
    many = sum(map(len, networks)) > 400
    for offset, own in zip(offsets, networks):
        for broken, marker, face in ((True, "o", colour), (False, ">", "none")):
            x = [o.value for o in own if o.broken is broken]
            axis.scatter(
                x, np.full(len(x), row + offset), s=8 if many else 20, marker=marker, facecolor=face, edgecolor=colour,
                linewidth=0.9, alpha=0.3 if many else 0.75, rasterized=len(x) > 1000,
            )  # fmt: skip
        middle = kaplan_meier(own).median
        if middle is not None and len(networks) > 1:
            height = 0.42 * SPREAD / max(len(networks) - 1, 2)
            axis.plot([middle] * 2, [row + offset - height, row + offset + height], color=colour, linewidth=2.2)


def _median(axis: Any, row: int, found: BreakingStatistics, factor: float) -> None:
    """The median of an arm with its interval, below its points; an arrow where it is open."""
    if found.interval is None:
        return
    y = row + (0.5 * SPREAD + 0.16 if len(found.networks) > 1 else 0.2)
    low, high = found.interval
    ends = [low * factor, (found.end if high is None else high) * factor]
    axis.plot(ends, [y, y], color=INK, linewidth=1.3, solid_capstyle="butt")
    if high is None:
        axis.plot(ends[1:], [y], color=INK, marker=">", markersize=5)
    if found.median is not None:
        axis.plot([found.median * factor], [y], color=INK, marker="D", markersize=5)


def _legend(plt: Any, figure: Any, several: bool) -> None:
    def mark(label: str, **style: Any) -> Any:
        return plt.Line2D([], [], label=label, color=INK, **style)

    figure.legend(
        handles=[
            mark("broke", linestyle="none", marker="o", markersize=4.5),
            mark("whole to the end", linestyle="none", marker=">", markersize=5, markerfacecolor="none"),
            *([mark("median of a network", linestyle="none", marker="|", markersize=9, markeredgewidth=2)] * several),
            mark("median of the arm, 95 % interval", marker="D", markersize=5, linewidth=1.3),
        ],
        loc="outside lower center",
        ncols=4,
    )
