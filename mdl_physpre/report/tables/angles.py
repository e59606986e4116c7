"""Angles between the forces of the embedded-atom potential and of the networks as numbers (the paper's Figure B.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mdl_physpre.analysis.force_alignment import ForceAlignment
from mdl_physpre.report.tables.page import Table
from mdl_physpre.report.tables.text import shown

HEAD = ("test set", "arm", "atoms", "mean, °", "beyond 90°", "mean weighted by force, °")
VALUE_HEAD = ("test set", "arm", "from, °", "to, °", "atoms", "weight, eV/Å", "share of independent directions")


def angle_table(angles: Mapping[str, Mapping[str, ForceAlignment]]) -> Table:
    """Means of each arm on the page, and whole histograms in the CSV file.

    ``angles`` : test set → arm → its angles.
    """
    rows: list[list[str]] = []
    values: list[list[Any]] = []
    for test_set, by_arm in angles.items():
        for arm, found in by_arm.items():
            beyond = found.share_above_90
            rows.append([
                test_set, arm, f"{found.n_atoms:,}", shown(found.mean, "{:.1f}"),
                shown(None if beyond is None else 100 * beyond, "{:.1f} %"), shown(found.weighted_mean, "{:.1f}"),
            ])  # fmt: skip
            histogram = zip(found.edges, found.edges[1:], found.atoms, found.weighted, found.isotropic)
            values += [[test_set, arm, *row] for row in histogram]
    return Table("force-angles", "Angles between forces", HEAD, rows, values, VALUE_HEAD, words=2)
