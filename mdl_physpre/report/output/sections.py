"""The sections of a report: what is shown of a run, and what is said where something is missing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from mdl_physpre.analysis.force_alignment import ForceAlignment
from mdl_physpre.analysis.radial_distribution import RDF, average_rdfs
from mdl_physpre.analysis.rdf_errors import rdf_errors
from mdl_physpre.dynamics.running.storage import RDFS
from mdl_physpre.potentials.zbl import radii_text
from mdl_physpre.report.figures.breaking import draw_breaking
from mdl_physpre.report.figures.calibration import draw_calibration
from mdl_physpre.report.figures.errors import draw_force_angles, draw_parity
from mdl_physpre.report.figures.potentials import draw_curves, draw_eam_parts
from mdl_physpre.report.figures.rdf import draw_rdfs
from mdl_physpre.report.figures.stability import draw_structures, draw_survival
from mdl_physpre.report.figures.structure_pictures import draw_failed, failed_structures
from mdl_physpre.report.figures.style import Figure, safe_name
from mdl_physpre.report.figures.training import draw_label_spread, draw_smallest_distances, draw_training
from mdl_physpre.report.measurements import BEFORE, FITTED, FOLDER, Measured
from mdl_physpre.report.output.oracle_section import oracle_section
from mdl_physpre.report.output.page import Section, downloads_item, drawn, text_item
from mdl_physpre.report.tables.breaking import breaking_sentences
from mdl_physpre.report.tables.breaking_page import breaking_table, points_table
from mdl_physpre.report.tables.committee import committee_table, force_calibrations
from mdl_physpre.report.tables.cost import cost_table, method_cost
from mdl_physpre.report.tables.page import (
    Table,
    angle_table,
    data_table,
    eam_tables,
    error_table,
    set_table,
    stability_table,
    structures_table,
)
from mdl_physpre.report.tables.text import protocol
from mdl_physpre.runs import layout
from mdl_physpre.runs.read import Run
from mdl_physpre.runs.stage import read_json
from mdl_physpre.training.arms import BASELINE
from mdl_physpre.utils.text_table import MISSING, shown

REFERENCE = FOLDER / "reference_rdf.json"


def all_sections(run: Run, measured: Measured, beside: Path, hashes: Mapping[str, str]) -> list[Section]:
    """Every section, its figures drawn into ``beside``."""
    return [
        _breaking(run, beside),
        _stability(run, beside),
        oracle_section(run, beside),
        _errors(run, measured, beside),
        _teacher(run, measured, beside),
        _pretraining(run, measured, beside),
        _distributions(run, beside),
        _angles(run, beside),
        _training(run, beside),
        _making(run, hashes),
    ]


def _breaking(run: Run, beside: Path) -> Section:
    section = Section("breaking", "Where it breaks")
    if not run.summary.stress_tests:
        section.missing.append("No stress test was run; physpre.stress asks for them in a run.")
        return section
    section.text.append(
        "Each structure is taken along a scale until it breaks. One that does not break is shown at the end that it "
        "reached, and breaks somewhere beyond."
    )
    for test in run.summary.stress_tests:
        section.text += breaking_sentences(run.summary, test)
        drawn(section, f"Breaking points of {test}", draw_breaking, run.summary, test, beside)
        section.add(breaking_table(run, test))
    table = points_table(run)
    if table is not None:
        section.items.append({"kind": "folded_table", "summary": "Every structure in numbers", "table": table})
    return section


def _stability(run: Run, beside: Path) -> Section:
    simulated = run.simulated()
    section = Section("stability", "Stability", [protocol(run.summary)] if simulated else [])
    section.add(stability_table(run))
    if not simulated:
        section.missing.append("No simulation has finished.")
        return section
    arms = {arm: own for arm, own in run.simulations.items() if own}
    drawn(section, "The survival curves", draw_survival, arms, beside)
    drawn(section, "The structures one by one", draw_structures, simulated, beside)
    failed, missing = failed_structures(simulated)
    section.missing += [f"{one}." for one in missing]
    if failed:
        drawn(section, "Pictures of failed structures", draw_failed, failed, beside)
        links = downloads_item(failed)
        section.items += [links] if links else []
    table = structures_table(run)
    if table is not None:
        section.items.append({"kind": "folded_table", "summary": "Every structure in numbers", "table": table})
    return section


def _errors(run: Run, measured: Measured, beside: Path) -> Section:
    section = Section("errors", "Errors on test structures")
    table = error_table(run)
    section.add(table)
    if table is None:
        section.missing.append("No network has been tested yet.")
    section.add(committee_table(run))
    if curves := force_calibrations(run):
        drawn(section, "Error against spread", draw_calibration, curves, beside)
    for test_set, found in measured.predictions.items():
        drawn(section, f"Parity of {test_set}", draw_parity, found, test_set, beside)
    section.missing += [f"{one}." for one in measured.missing if one.startswith("parity")]
    return section


def _teacher(run: Run, measured: Measured, beside: Path) -> Section:
    section = Section("potentials", "Energy of two atoms")
    section.missing += [f"{one}." for one in measured.missing if one.startswith("energy curves")]
    section.text += _repulsions(run)
    if measured.curves and any("EAM" in found.parts for found in measured.curves.pairs.values()):
        drawn(section, "The parts of the embedded-atom potential", draw_eam_parts, measured.curves, beside)
    names = _with_curve(measured, *FITTED, *run.arms)
    if names:
        title = "Energy against distance"
        drawn(section, "Energy curves", draw_curves, measured.curves, names, beside, "energy-curves", title)
    else:
        section.missing.append("No potential is there yet.")
    section.add(*eam_tables(run, measured.curves.elements if measured.curves else ()))
    return section


def _repulsions(run: Run) -> list[str]:
    """Where repulsions of nuclei end."""
    summary = run.summary
    found = {who: one.short_range_radii for who, one in (("EAM", summary.eam), ("teacher", summary.teacher)) if one}
    found |= {arm: result.networks[0].short_range_radii for arm, result in summary.arms.items() if result.networks}
    return [f"{who}: repulsion of the nuclei (ZBL) up to {radii_text(r)}." for who, r in found.items() if r]


def _with_curve(measured: Measured, *names: str) -> list[str]:
    return [name for name in names if measured.curves and name in measured.curves.names]


def _pretraining(run: Run, measured: Measured, beside: Path) -> Section:
    section = Section("pretraining", "Pretraining")
    section.add(set_table(run))
    report = run.pretraining_set.get("training")
    if report is None:
        section.missing.append("There is no pretraining set: no arm needs one, or it is not made yet.")
    else:
        if report.smallest_distances is not None and report.smallest_distances.pairs:
            drawn(section, "Smallest distances", draw_smallest_distances, report.smallest_distances, beside)
        drawn(section, "Labels of the pretraining set", draw_label_spread, report.labels, beside)
    for arm in run.arms:
        before = f"{arm}{BEFORE}"
        if _with_curve(measured, before):
            names = _with_curve(measured, *FITTED, *dict.fromkeys((BASELINE, before, arm)))
            title = f"Knowledge transfer: what {arm} was taught, and what finetuning left of it"
            file = f"transfer-{safe_name(arm)}"
            drawn(section, title, draw_curves, measured.curves, names, beside, file, title)
    return section


def _distributions(run: Run, beside: Path) -> Section:
    section = Section("rdf", "Radial distribution functions")
    found = {}
    for arm, networks in run.simulations.items():
        stored = [read_json(simulation.folder / RDFS) for simulation in networks.values()]
        structures = [RDF.model_validate(one) for own in stored for one in own.get("structures", [])]
        if any(one.g for one in structures):
            found[arm] = average_rdfs(structures)
    if not found:
        section.missing.append(
            "Radial distribution functions were not sampled; physpre.dynamics.rdf_interval: 10 does so in a run."
        )
        return section
    reference = read_json(run.folder / REFERENCE)
    if not reference and run.plan.oracle_trajectory:
        reference = {"name": "oracle", **read_json(run.folder / layout.ORACLE_RUN / RDFS)}
    name = str(reference.get("name", "reference"))
    theirs = RDF.model_validate(reference["average"]) if "average" in reference else None
    drawn(section, "Radial distribution functions", _rdf_figure, found, theirs, name, beside)
    if theirs is None:
        section.missing.append("There is no reference; physpre report RUN --reference TRAJECTORY adds one.")
        return section
    rows, values = [], []
    for arm, one in found.items():
        for pair, error in rdf_errors(one, theirs).items():
            both = error.mae, error.wasserstein
            rows.append([arm, pair, *(shown(value, "{:.3f}") for value in both)])
            values.append([arm, pair, *both])
    head = ["arm", "pair", "mean absolute error", "Wasserstein-1 distance, Å"]
    section.add(Table("rdf-errors", "Errors of the radial distribution functions", head, rows, values, head, words=2))
    return section


def _rdf_figure(found: Mapping[str, RDF], reference: RDF | None, name: str, beside: Path) -> Figure:
    draw_rdfs(found, beside / "rdf.png", reference, name)
    return Figure(
        beside, "rdf", "Radial distribution functions",
        f"Radial distribution functions of {', '.join(found)}" + (f" and of {name}." if reference else "."),
        "Averages over the networks of an arm, their structures, and the time that each ran; a structure that failed "
        "adds the steps before." + (" Grey: the reference." if reference else ""),
    )  # fmt: skip


def _angles(run: Run, beside: Path) -> Section:
    section = Section("angles", "Force angles")
    angles: dict[str, dict[str, ForceAlignment]] = {}
    for arm, result in run.summary.arms.items():
        for test_set, found in result.force_angles.items():
            angles.setdefault(test_set, {})[arm] = found
    for test_set, by_arm in angles.items():
        drawn(section, f"Angles between forces, {test_set}", draw_force_angles, by_arm, test_set, beside)
    if angles:
        section.add(angle_table(angles))
    else:
        section.missing.append(
            "The run holds no angles between the forces of the embedded-atom potential and a network."
        )
    return section


def _training(run: Run, beside: Path) -> Section:
    section = Section("training", "Training and cost")
    logs = {arm: own for arm, own in run.logs.items() if own}
    if logs:
        drawn(section, "Losses", draw_training, logs, beside)
    else:
        section.missing.append("No training has begun.")
    section.add(cost_table(run))
    said = method_cost(run)
    section.text += [said] if said else []
    return section


def _making(run: Run, hashes: Mapping[str, str]) -> Section:
    section = Section("making", "How it was made")
    section.add(data_table(run, hashes))
    if not run.summary.data:
        section.missing.append("The run holds no counts of its data.")
    e = run.environment
    section.text += [f"{sentence}." for sentence in e.get("doubts", ())]
    versions = {"mdl_physpre": e.get("mdl_physpre"), "python": e.get("python"), **(e.get("packages") or {})}
    task = run.config.get("task", {})
    rows = [
        ["command", e.get("command") or MISSING],
        ["started", e.get("started") or MISSING],
        ["seed", str(task.get("seed", MISSING))],
        ["networks of each arm", str(run.n_networks)],
        ["machine", ", ".join(str(v) for v in (e.get("processor"), e.get("platform")) if v) or MISSING],
        ["memory", f"{e['memory_gb']:g} GB" if e.get("memory_gb") else MISSING],
        ["GPU", e.get("cuda") or "none"],
        ["threads", str(e.get("threads", MISSING))],
        ["versions", ", ".join(f"{k} {v}" for k, v in versions.items() if v)],
        ["hash of the configuration", e.get("config") or MISSING],
    ]
    section.add(Table("setup", "Set-up", ["what", "value"], rows, words=2))
    text = yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)
    section.items.append(text_item("The whole configuration (config.yml)", text))
    return section
