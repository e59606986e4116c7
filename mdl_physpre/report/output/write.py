"""A report is written: figures and tables, the page, model cards, and a PDF where it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mdl_physpre.analysis.radial_distribution import average_rdfs
from mdl_physpre.analysis.rdf_errors import reference_rdf
from mdl_physpre.errors import ConfigError, nearest
from mdl_physpre.report.measurements import Structures, measure
from mdl_physpre.report.output.model_card import source_files, write_cards
from mdl_physpre.report.output.page import page
from mdl_physpre.report.output.pdf import write_pdf
from mdl_physpre.report.output.sections import REFERENCE, all_sections
from mdl_physpre.report.tables.text import ensemble_and_temperature, some_dynamics
from mdl_physpre.report.verdict import cautions, verdict_sentences, verdict_table
from mdl_physpre.runs import layout
from mdl_physpre.runs.read import Run, read_run
from mdl_physpre.runs.stage import hash_of_file, read_json, write_json
from mdl_physpre.runs.summary import Summary
from mdl_physpre.utils.files import write_text
from mdl_physpre.utils.overwrite import refuse_to_delete

FORMATS = ("html", "pdf", "png", "csv")
WRITTEN = ".written"  # names of the figures and tables of a report
DEFAULT: Sequence[str] = ("html", "png", "csv")


def write_report(
    folder: str | Path,
    *,
    summary: Summary | None = None,
    structures: Structures | None = None,
    formats: Sequence[str] = DEFAULT,
    reference: str | Path | None = None,
) -> list[Path]:
    """Write the report of a run, finished or not.

    Parameters
    ----------
    folder : of ``physpre run``.
    summary : of a run in progress; read from the folder where ``None``.
    structures : see :func:`mdl_physpre.report.measurements.measure`. What cannot be computed is named in the report.
    formats : ``html`` (``report.html``), ``pdf`` (``report.pdf``), ``png`` (figures as PNG and SVG, in ``report``),
        ``csv`` (tables, in ``report``).
    reference : a trajectory, or a folder of them, for radial distribution functions; kept in the run for later reports.

    Returns
    -------
    The files that a reader opens: page, PDF, folder.

    Raises
    ------
    DataError : the folder is no run's, or a reference that cannot be read.
    ConfigError : an unknown format.
    WouldDelete : the run keeps another reference.
    """
    if unknown := [one for one in formats if one not in FORMATS]:
        raise ConfigError(f"format {unknown[0]!r}: {nearest(unknown[0], FORMATS)}")
    run = read_run(folder, summary)
    beside = run.folder / layout.REPORT_FILES
    measured = measure(run, structures)
    if reference is not None:
        _store_reference(run, reference)
    hashes = file_hashes(run)
    verdict = verdict_table(run, measured)
    sections = all_sections(run, measured, beside, hashes)
    tables = [verdict, *(item["table"] for s in sections for item in s.items if "table" in item)]
    figures = [item["figure"] for s in sections for item in s.items if "figure" in item]
    sentences = verdict_sentences(run, measured)
    written = []
    if "html" in formats:
        written.append(run.folder / layout.REPORT)
        write_text(written[-1], page(
            name=run.name, facts=_facts(run), missing=run.missing, sentences=sentences, verdict=verdict,
            cautions=cautions(run), sections=sections, beside={"png", "csv"} <= set(formats),
        ))  # fmt: skip
    if "pdf" in formats:
        written.append((run.folder / layout.REPORT).with_suffix(".pdf"))
        write_pdf(written[-1], run.name, _facts(run), [*sentences, *cautions(run)], tables, figures)
    write_cards(run, hashes)
    kept = {f"{figure.name}{end}" for figure in figures for end in (".svg", ".png") if "png" in formats}
    if "csv" in formats:
        kept |= {table.write(beside).name for table in tables}
    drawn = {f"{figure.name}{end}" for figure in figures for end in (".svg", ".png")}
    _take_away(beside, kept, drawn)
    return [*written, beside] if {"png", "csv"} & set(formats) else written


def _take_away(beside: Path, kept: set[str], drawn: set[str]) -> None:
    """Take away what an earlier report wrote, or was drawn for the page alone, and note what this one did."""
    try:
        before = set((beside / WRITTEN).read_text().split("\n"))
    except OSError:
        before = set()
    for name in (before | drawn) - kept - {""}:
        (beside / name).unlink(missing_ok=True)
    if kept:
        write_text(beside / WRITTEN, "\n".join(sorted(kept)) + "\n")


def _facts(run: Run) -> str:
    parts = [f"{run.config['model']['name']}, arms {', '.join(run.arms)}"]
    if train := run.summary.data.get("train"):
        parts.append(f"{train.structures:,} training structures")
    if dynamics := some_dynamics(run.summary):
        s = dynamics.settings
        length = s["steps"] * s["timestep"] / 1000
        parts.append(f"{ensemble_and_temperature(s)} for {length:g} ps")
    parts.append("data " + ", ".join(Path(file).name for file in source_files(run.config)))
    return " · ".join(parts)


def file_hashes(run: Run) -> dict[str, str]:
    """SHA-256 of the data files that are still where the configuration says, first 16 digits."""
    extra = run.config["dataset"].get("extra_tests") or {}
    files = [Path(str(file)) for file in (*source_files(run.config), *extra.values())]
    return {path.name: hash_of_file(path) for path in files if path.is_file()}


def _store_reference(run: Run, reference: str | Path) -> None:
    settings = run.config["physpre"]["dynamics"]
    keys = ("rdf_r_max", "rdf_bins", "rdf_smoothing")
    found = reference_rdf(reference, *(settings[k] for k in keys), first_step=settings.get("rdf_start", 0))
    before, now = read_json(run.folder / REFERENCE).get("name"), {"reference": Path(reference).name}
    if before not in (None, now["reference"]):
        refuse_to_delete(run.folder / REFERENCE, "the reference of a report", {"reference": before}, now)
    average = average_rdfs(found.values()).plain()
    write_json(run.folder / REFERENCE, {"name": Path(reference).name, "structures": len(found), "average": average})
