"""The section of a report on what an oracle says of simulations and stress tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mdl_physpre.dynamics.compare_motion import MotionComparison
from mdl_physpre.report.figures.motion import draw_motion
from mdl_physpre.report.figures.oracle import draw_oracle_errors
from mdl_physpre.report.figures.style import Figure
from mdl_physpre.report.output.page import Section, drawn
from mdl_physpre.report.tables.oracle import motion_of, motion_table, oracle_table
from mdl_physpre.runs.oracle import dynamics_oracle_errors, stress_oracle_errors
from mdl_physpre.runs.read import Run


def oracle_section(run: Run, beside: Path) -> Section:
    """Errors along the simulations and stress tests, and motion against the oracle's own; figures into ``beside``."""
    section = Section("oracle", "Errors along the simulations")
    for test, found in {"": dynamics_oracle_errors(run.summary), **stress_oracle_errors(run.summary)}.items():
        if found:
            drawn(section, "Errors along the simulations", draw_oracle_errors, found, beside, test)
            section.add(oracle_table(found, test))
    if not section.items:
        section.missing.append("No reference was asked; physpre.dynamics.oracle names one.")
    motion = motion_of(run)
    if any(one.structures for one in motion.values()):
        drawn(section, "Motion against the oracle's own", _motion_figure, motion, beside)
    section.missing += [f"{arm}: {note}." for arm, one in motion.items() for note in one.notes]
    section.add(motion_table(motion))
    return section


def _motion_figure(found: Mapping[str, MotionComparison], beside: Path) -> Figure:
    draw_motion(found, beside / "motion.png")
    return Figure(
        beside, "motion", "Motion against the oracle's own",
        f"Mean square displacements and vibrational densities of states of {', '.join(found)} and of the oracle.",
        "The first network of each arm and, in grey, the oracle, from the same start with the same random numbers: "
        "structures that ran to the end with both.",
    )  # fmt: skip
