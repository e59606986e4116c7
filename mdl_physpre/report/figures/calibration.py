"""The figure of committees: error against spread of the forces."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mdl_physpre.analysis.calibration import Calibration
from mdl_physpre.report.figures.style import MARKERS, SOFT, Figure, pair_panels, plain, save, styled, styles_of


def draw_calibration(found: Mapping[str, Mapping[str, Calibration]], folder: Path) -> Figure:
    """Root mean square error of forces against that of their spread: test set -> arm -> its calibration."""
    arms = list(dict.fromkeys(arm for own in found.values() for arm in own))
    styles, marks = styles_of(arms), dict(zip(arms, MARKERS * len(arms)))
    said = []
    with styled() as plt:
        figure, axes = pair_panels(plt, list(found))
        for axis, (test_set, own) in zip(axes, found.items()):
            values = [v for one in own.values() for v in (*one.spread, *one.error) if v > 0]
            limits = (min(values) / 1.5, max(values) * 1.5) if values else (0.01, 1.0)
            axis.plot(limits, limits, color=SOFT, linewidth=0.9)
            for arm, one in own.items():
                axis.plot(one.spread, one.error, marker=marks[arm], markersize=3, label=plain(arm), **styles[arm])
                factor = "" if one.factor is None else f", error {one.factor:.2g} times the spread"
                said.append(f"{test_set}, {arm}: {len(one.counts)} points{factor}")
            axis.set(xscale="log", yscale="log", xlim=limits, ylim=limits, title=plain(test_set))
            axis.set(xlabel="force spread (eV/Å)", ylabel="error of the mean (eV/Å)")
        axes[0].legend()
        save(figure, folder / "calibration")
    atoms = int(np.max([one.n for own in found.values() for one in own.values()]))
    return Figure(
        folder, "calibration", "Error against spread of forces",
        f"Curves of the error of forces against the spread between networks. {'; '.join(said)}.",
        f"Root mean squares over atoms (up to {atoms:,} of a test set) in bins of growing spread, as many in each. On "
        "the line the error is as large as the spread; above it, larger than the networks' disagreement tells.",
    )  # fmt: skip
