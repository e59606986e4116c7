"""Pictures of structures that failed: the start beside the frame at which a bound was first passed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.data.colors import jmol_colors
from ase.io import read

from mdl_physpre.dynamics.running.storage import FAILING
from mdl_physpre.dynamics.verdicts.verdict import Verdict
from mdl_physpre.report.figures.style import Figure, plain, save, styled
from mdl_physpre.report.tables.text import worded
from mdl_physpre.runs.read import Simulation
from mdl_physpre.structures.neighbours import pairs_within

logger = logging.getLogger(__name__)
EACH = 2  # pictures for each simulation
ATOMS = 600  # of a structure that is drawn at most
MARK = (0.0, 0.85, 0.95)  # a colour that no common element has


@dataclass(frozen=True)
class Failed:
    """A structure that failed, of which frames were kept."""

    simulation: str
    verdict: Verdict
    frames: Sequence[Atoms]
    path: Path


def failed_structures(simulations: Mapping[str, Simulation], each: int = EACH) -> tuple[list[Failed], list[str]]:
    """Structures to look at, overlaps first, then those that failed soonest; and sentences on what was not kept."""
    found: list[Failed] = []
    missing: list[str] = []
    for name, stored in simulations.items():
        failed = [v for v in stored.verdicts if v.failed]
        failed.sort(key=lambda v: (v.reasons[0] != "overlap", v.failures[0].step, v.index))
        kept: list[Failed] = []
        for verdict in failed:
            path = stored.folder / FAILING / f"{verdict.index:05d}.extxyz"
            if len(kept) == each or verdict.n_atoms > ATOMS or not path.exists():
                continue
            try:
                frames: Any = read(path, ":")
            except Exception as error:  # a file of the run that was damaged must not cost the whole report
                logger.warning("%s cannot be read: %s", path, error)
                continue
            at = [f for f in frames if f.info.get("step") == verdict.first_failing_step] or frames[-1:]
            kept.append(Failed(name, verdict, [frames[0], at[0]], path))
        if failed and not kept:
            missing.append(f"{name}: no frames of its {len(failed)} failed structures were kept")
        found += kept
    return found, missing


def closest_pair(atoms: Atoms) -> tuple[int, int, float] | None:
    """The two atoms that are closest, periodic images included, and their distance, Å; ``None`` without a pair."""
    if not np.isfinite(atoms.positions).all() or len(atoms) == 0:
        return None
    for cutoff in (1.5, 3.0, 6.0):
        i, j, d = pairs_within(atoms, cutoff)
        if len(i):
            k = int(d.argmin())
            return int(i[k]), int(j[k]), float(d[k])
    return None


def draw_failed(failed: Sequence[Failed], folder: Path) -> Figure:
    """Start and failing frame of each structure, the closest pair of atoms marked in both."""
    from ase.visualize.plot import plot_atoms

    with styled() as plt:
        figure, axes = plt.subplots(
            len(failed), 2, figsize=(6.6, 3.0 * len(failed)), squeeze=False, subplot_kw={"anchor": "N"}
        )
        said = []
        for row, one in zip(axes, failed):
            pair = closest_pair(one.frames[-1])
            for axis, frame, when in zip(row, one.frames, ("start", f"step {one.verdict.first_failing_step:,}")):
                drawn, colours = _centred(frame, None if pair is None else pair[:2])
                if len(drawn):
                    plot_atoms(drawn, axis, radii=0.45, rotation="12x,-18y,0z", colors=colours, show_unit_cell=2)
                    for patch in axis.patches:
                        patch.set_rasterized(True)  # thousands of circles would make a large file
                axis.set_axis_off()
                axis.set_title(f"{plain(one.simulation)}, {plain(one.verdict.structure_id)}: {when}", fontsize=8)
            distance = "" if pair is None else f", closest pair {pair[2]:.2f} Å"
            reason = worded(one.verdict.reasons[0])
            text = f"{one.verdict.formula}; failed by {reason}{distance}"
            row[1].text(0.5, -0.02, plain(text), ha="center", va="top", transform=row[1].transAxes, fontsize=7.5)
            said.append(f"{one.simulation}, {one.verdict.structure_id}: {text}")
        save(figure, folder / "failed-structures")
    return Figure(
        folder, "failed-structures", "Structures that failed",
        "Pictures of structures at the start and where they failed. " + "; ".join(said) + ".",
        "Start and first failing frame. Bright blue: the two atoms that are closest in the failing frame, marked in "
        "both pictures; they were brought to the middle of the cell. Of each arm at most two, overlaps first.",
    )  # fmt: skip


def _centred(atoms: Atoms, pair: tuple[int, int] | None) -> tuple[Atoms, np.ndarray]:
    """The structure with a pair of atoms in the middle of its cell, and colours in which the pair stands out."""
    drawn = atoms.copy()
    drawn.calc = None
    colours = jmol_colors[drawn.numbers].copy()
    known = np.isfinite(drawn.positions).all(1)
    if pair is not None:
        colours[list(pair)] = MARK
        if drawn.pbc.any() and known.all():
            drawn.positions += drawn.cell.array.sum(0) / 2 - drawn.positions[pair[0]]
            drawn.wrap()
    return drawn[known], colours[known]
