"""Figures of molecular dynamics: survival of the arms, and every structure with its verdict and first failing step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mdl_physpre.dynamics.verdicts.verdict import Verdict
from mdl_physpre.report.figures.style import FAINT, INK, SOFT, Figure, plain, save, styled, styles_of
from mdl_physpre.runs.read import Simulation

KINDS = ("overlap", "Lindemann", "other")
KIND_STYLES = {
    "overlap": {"color": "#d55e00", "marker": "X"},
    "Lindemann": {"color": "#0072b2", "marker": "o"},
    "other": {"color": INK, "marker": "^"},
}
NAMED = 45  # structures that are named beside their row
PANELS = 6  # simulations that are drawn side by side
DRAWN = 400  # rows that are drawn one by one; more become one picture


def kind_of(verdict: Verdict) -> str:
    """What a structure failed by first: ``overlap``, ``Lindemann`` or ``other``; empty where it did not."""
    if not verdict.failed:
        return ""
    first = verdict.reasons[0]
    return "overlap" if first == "overlap" else "Lindemann" if first.startswith("lindemann") else "other"


def draw_survival(simulations: Mapping[str, Mapping[str, Simulation]], folder: Path) -> Figure:
    """Fraction of structures that have not failed against time, a line for each network.

    ``simulations`` : arm → name of the network → simulation. The 95 % band over structures is drawn where each arm has
    one network.
    """
    styles = styles_of(simulations)
    single = all(len(own) == 1 for own in simulations.values())
    with styled() as plt:
        figure, axis = plt.subplots(figsize=(6.4, 3.5))
        said = []
        for arm, own in simulations.items():
            curves = [found.survival for found in own.values() if found.survival.n]
            if not curves:
                continue
            counts = ", ".join(str(sum(curve.failed)) for curve in curves)
            for number, curve in enumerate(curves):
                t = np.array([*curve.value, curve.end]) / 1000
                s, low, high = (np.array([*one, one[-1]]) for one in (curve.survival, curve.low, curve.high))
                if single:
                    axis.fill_between(t, low, high, step="post", color=styles[arm]["color"], alpha=0.15, linewidth=0)
                text = f"{plain(arm)}: {counts} of {curve.n} failed"
                axis.step(t, s, where="post", label=None if number else text, **styles[arm])
                said.append(f"{arm} {s[-1]:.0%} at {t[-1]:.3g} ps")
        axis.set(xlabel="time (ps)", ylabel="fraction not failed", ylim=(0, 1.04), xlim=(0, None))
        axis.legend(loc="lower left")
        axis.grid(axis="y")
        save(figure, folder / "survival")
    band = (
        "band: 95 % Wilson interval over structures. It does not hold the spread between trainings."
        if single
        else "a line for each network; the spread between lines of an arm is that between trainings."
    )
    return Figure(
        folder,
        "survival",
        "Survival",
        f"Curves of the fraction of structures that have not failed against time. At the end: {'; '.join(said)}.",
        f"Fraction of structures that have not failed by a time (Kaplan–Meier); {band}",
    )


def draw_structures(simulations: Mapping[str, Simulation], folder: Path) -> Figure:
    """A row for each structure and a panel for each simulation: how long it ran, and by what it failed first.

    Rows are the same structures in every panel, those first that failed first in the first panel. Of more than six
    simulations the first six are drawn.
    """
    left = len(simulations) - PANELS
    simulations = dict(list(simulations.items())[:PANELS])
    by_key = [{(v.index, v.structure_id): v for v in found.verdicts} for found in simulations.values()]
    order = _order(by_key)
    rows = len(order)
    with styled() as plt:
        height = float(np.clip(0.16 * rows + 1.1, 2.2, 8.5))
        panels = len(simulations)
        width = min(3.1 * panels + 1.2, 11.0)
        figure, axes = plt.subplots(1, panels, figsize=(width, height), sharey=True, sharex=True, squeeze=False)
        for axis, name, verdicts in zip(axes[0], simulations, by_key):
            own = [verdicts.get(key) for key in order]
            (_draw_rows if rows <= DRAWN else _draw_picture)(axis, own)
            counts = ", ".join(f"{k} {n}" for k in KINDS if (n := sum(kind_of(v) == k for v in own if v)))
            axis.set_title(f"{plain(name)}\n{counts or 'none failed'}", fontsize=8.5)
            axis.set(xlabel="time (ps)", ylim=(rows - 0.5, -0.5))
            axis.set_xlim(left=0)
        if rows <= NAMED:
            known = [next(own[key] for own in by_key if key in own) for key in order]
            names = [plain(f"{v.structure_id} ({v.formula})")[:34] for v in known]
            axes[0][0].set_yticks(range(rows), names, fontsize=6.5)
        else:
            axes[0][0].set_ylabel(f"{rows:,} structures")
        handles = [
            plt.Line2D([], [], label=text, linestyle="-", **KIND_STYLES[k])
            for k, text in zip(KINDS, ("atom overlap", "Lindemann index", "other"))
        ]
        handles.append(plt.Line2D([], [], color=FAINT, linewidth=2.5, label="stable to the end"))
        figure.legend(handles=handles, loc="outside lower center", ncols=4)
        save(figure, folder / "structures")
    return Figure(
        folder, "structures", "Every structure",
        f"{rows} rows, one for each structure, a panel for each arm; each row ends where the structure first failed. "
        "The table of structures holds the same in numbers.",
        "Each row is one structure, the same in every panel. Coloured up to its first failing step, with a marker for "
        "what it failed by first; grey: stable to the end."
        + (f" {left} further networks are not drawn." if left > 0 else ""),
    )  # fmt: skip


def _order(by_key: Sequence[Mapping[tuple[int, str], Verdict]]) -> list[tuple[int, str]]:
    """Keys of structures: those of the first simulation by the time at which they failed, then the others."""

    def when(key: tuple[int, str]) -> tuple[float, int]:
        time = by_key[0][key].time_fs
        return np.inf if time is None else time, key[0]

    return sorted(by_key[0], key=when) + sorted({key for own in by_key for key in own} - set(by_key[0]))


def _draw_rows(axis: Any, verdicts: Sequence[Verdict | None]) -> None:
    for row, v in enumerate(verdicts):
        if v is None:
            continue
        kind = kind_of(v)
        if v.time_fs is None:
            axis.plot([0, v.time_run_fs / 1000], [row, row], color=FAINT, linewidth=2.5, solid_capstyle="butt")
            continue
        style, end = KIND_STYLES[kind], v.time_fs / 1000
        axis.plot([0, end], [row, row], color=style["color"], linewidth=1.2, alpha=0.75)
        axis.plot([end], [row], color=style["color"], marker=style["marker"], markersize=4.5, linestyle="none")


def _draw_picture(axis: Any, verdicts: Sequence[Verdict | None]) -> None:
    from matplotlib.colors import ListedColormap

    end = max((v.time_run_fs for v in verdicts if v), default=0.0) or 1.0
    bins = 400
    picture = np.zeros((len(verdicts), bins), dtype=np.uint8)
    for row, v in enumerate(verdicts):
        if v is None:
            continue
        kind = kind_of(v)
        stop = v.time_run_fs if v.time_fs is None else v.time_fs
        picture[row, : max(2, round(bins * stop / end))] = 1 + KINDS.index(kind) if kind else 4
    colours = ListedColormap(["#ffffff00", *(KIND_STYLES[k]["color"] for k in KINDS), FAINT])
    axis.imshow(
        picture, cmap=colours, vmin=0, vmax=4, aspect="auto", interpolation="nearest",
        extent=(0, end / 1000, len(verdicts) - 0.5, -0.5),
    )  # fmt: skip
    axis.tick_params(colors=SOFT)
