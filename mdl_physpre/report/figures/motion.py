"""Figure of mean square displacements and vibrational densities of states, over those of a reference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mdl_physpre.dynamics.compare_motion import MotionComparison
from mdl_physpre.report.figures.style import FAINT, SOFT, pair_panels, plain, save, styled, styles_of


def draw_motion(found: Mapping[str, MotionComparison], path: str | Path) -> list[Path]:
    """Mean square displacement by element, and densities of states; the reference is grey.

    ``found`` : by the name of a potential, all against one reference. ``path`` : of the figure, written as PNG and SVG.
    """
    drawn = {name: one for name, one in found.items() if one.motion is not None and one.reference is not None}
    first = next(iter(drawn.values()))
    assert first.reference is not None
    elements, styles = list(first.reference.msd), styles_of(drawn)
    panels = [f"{name}, displacement" for name in elements] + [f"{name}, vibrations" for name in first.reference.dos]
    with styled() as plt:
        figure, axes = pair_panels(plt, panels, (3.6, 3.4, 3.4), 2.8)
        for axis, element in zip(axes, elements):
            axis.plot(first.reference.time_fs / 1000, first.reference.msd[element], color=SOFT, label="reference")
            for name, one in drawn.items():
                assert one.motion is not None
                axis.plot(one.motion.time_fs / 1000, one.motion.msd[element], label=plain(name), **styles[name])
            axis.set(xlabel="time (ps)", ylabel="mean square displacement (Å²)", xlim=(0, None), ylim=(0, None))
        for axis, element in zip(axes[len(elements) :], first.reference.dos):
            axis.fill_between(first.reference.frequency, first.reference.dos[element], color=FAINT, linewidth=0)
            ends = [_end(first.reference.frequency, first.reference.dos[element])]
            for name, one in drawn.items():
                assert one.motion is not None
                g = one.motion.dos[element]
                axis.plot(one.motion.frequency, g, **{**styles[name], "linewidth": 1.2})
                ends.append(_end(one.motion.frequency, g))
            axis.set(xlabel="frequency (THz)", ylabel="states (1/THz)", xlim=(0, max(ends)), ylim=(0, None))
        axes[0].legend()
        return save(figure, path)


def _end(frequency: np.ndarray, dos: np.ndarray) -> float:
    """Where all but a thirtieth of the states lie below, and a quarter more."""
    below = np.cumsum(np.maximum(dos, 0.0))
    return float(1.25 * frequency[np.searchsorted(below, 29 / 30 * below[-1])])
