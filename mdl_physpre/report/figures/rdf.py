"""Figure of radial distribution functions: those of potentials over that of a reference, a panel for each pair."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mdl_physpre.analysis.radial_distribution import RDF
from mdl_physpre.analysis.rdf_errors import RDFError, rdf_errors
from mdl_physpre.errors import DataError
from mdl_physpre.report.figures.style import FAINT, SOFT, pair_panels, plain, save, styled, styles_of


def draw_rdfs(
    results: Mapping[str, RDF],
    path: str | Path,
    reference: RDF | None = None,
    reference_name: str = "reference",
) -> list[Path]:
    """g(r) against r, one panel for each pair of elements, with the errors against the reference in the panel.

    ``results`` : by the name of an arm or potential. ``path`` : of the figure, written as PNG and as SVG; both are
    returned. ``reference`` : drawn as a grey area.

    Raises
    ------
    DataError : no pair to draw, or a result with other bins than the reference.
    """
    drawn = dict(results)
    errors = {} if reference is None else {name: rdf_errors(result, reference) for name, result in drawn.items()}
    every = [*([] if reference is None else [reference]), *drawn.values()]
    pairs = list(dict.fromkeys(pair for result in every for pair in result.g))
    if not pairs:
        reasons = {str(result.not_applicable) for result in every} or {"no results"}
        raise DataError(f"there is no radial distribution function to draw: {', '.join(sorted(reasons))}")
    styles = styles_of(drawn)
    with styled() as plt:
        figure, axes = pair_panels(plt, pairs, (3.6, 3.6, 3.6), 3.0, below=0.0)
        for axis, pair in zip(axes, pairs):
            if reference is not None and pair in reference.g:
                r, g = reference.r, reference.g[pair]
                axis.fill_between(r, g, color=FAINT, linewidth=0, label=plain(reference_name))
                axis.plot(r, g, color=SOFT, linewidth=0.7)
            for name, result in drawn.items():
                if pair in result.g:
                    label = plain(name) + _error_text(errors.get(name, {}).get(pair))
                    axis.plot(result.r, result.g[pair], label=label, **{**styles[name], "linewidth": 1.4})
            axis.axhline(1.0, color=FAINT, linewidth=0.8, zorder=0)
            axis.set(xlabel="distance r (Å)", ylabel="g(r)")
            axis.set_xlim(0, float(every[0].edges[-1]))
            # errors differ from panel to panel, so each has a legend, in room of its own above the curves
            lines = len(axis.get_legend_handles_labels()[1]) + bool(errors)
            axis.set_ylim(0, axis.get_ylim()[1] / (1 - 0.085 * min(lines, 7)))
            title = "mean absolute error, Wasserstein-1 distance" if errors else None
            axis.legend(fontsize=7.5, loc="upper left", title=title, title_fontsize=7.5, alignment="left")
        return save(figure, path)


def _error_text(error: RDFError | None) -> str:
    if error is None or error.mae is None:
        return ""
    distance = error.wasserstein
    return f": {error.mae:.2f}" + ("" if distance is None else f", {distance:.3f} Å")
