"""Tables and figures of ``known_truth.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median, stdev
from typing import Any

import numpy as np

from mdl_physpre.report.figures.style import save, styled, styles_of


def arm_results(networks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the networks of an arm say together: means of errors, sums of counts, medians along all own runs."""
    errors = {}
    for name in networks[0]["errors"]:
        each = {
            "energy": [n["errors"][name]["energy_mae_mev_per_atom"] for n in networks],
            "forces": [n["errors"][name]["forces_mae"] for n in networks],
        }
        errors[name] = {key: float(np.mean(values)) for key, values in each.items()}
        errors[name] |= {f"{key}_deviation": stdev(v) if len(v) > 1 else 0.0 for key, v in each.items()}
    points = [point for n in networks for point in n["own"]["along"]]
    along = {key: median(point[key] for point in points) for key in ("energy", "forces", "true_forces")}
    return {
        "errors": errors,
        "own": together([n["own"] for n in networks]) | along,
        "breaking": together([n["breaking"] for n in networks]),
        "rdf": {key: float(np.mean([n["rdf"][key] for n in networks])) for key in networks[0]["rdf"]},
    }


def together(counts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums of structures, failures and reasons."""
    reasons = {reason: sum(c["reasons"].get(reason, 0) for c in counts) for c in counts for reason in c["reasons"]}
    return {key: sum(c[key] for c in counts) for key in ("structures", "failed")} | {"reasons": reasons}


def table(content: Mapping[str, Any]) -> str:
    """The arms in Markdown."""
    arms = content["arms"]
    sets = list(arms["truth"]["errors"])
    heads = [
        "",
        *(name.replace("_", " ") for name in sets),
        "own run: overlaps; errors",
        "forces off by",
        "RDF",
        "broken",
    ]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for arm, found in arms.items():
        own, breaking = found["own"], found["breaking"]
        cells = [f"{e['energy']:.0f} / {e['forces']:.3g}" for e in found["errors"].values()]
        cells.append(f"{overlaps(own)} of {own['structures']}; {own['energy']:+.0f} / {own['forces']:.2g}")
        cells.append(f"{100 * own['forces'] / own['true_forces']:.0f} %")
        cells.append(f"{found['rdf']['mae']:.3f}")
        cells.append(f"{breaking['failed']} of {breaking['structures']}, {overlaps(breaking)} by overlap")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def overlaps(counts: Mapping[str, Any]) -> int:
    """How many structures failed by overlap."""
    return counts["reasons"].get("overlap", 0)


def draw(content: Mapping[str, Any], folder: Path) -> None:
    """Median error of forces against time along the own runs of each arm."""
    arms = [arm for arm in content["networks"] if arm != "truth"]
    with styled() as plt:
        figure, axes = plt.subplots(1, 2, figsize=(7.2, 2.9))
        for axis, key, label in zip(axes, ("energy", "forces"), ("energy error, meV/atom", "force error, eV/Å")):
            for arm, style in styles_of(arms).items():
                points = [p for n in content["networks"][arm] for p in n["own"]["along"]]
                times = sorted({p["time_fs"] for p in points})
                axis.plot(
                    times, [median(abs(p[key]) for p in points if p["time_fs"] == t) for t in times], label=arm, **style
                )
            axis.set(xlabel="time, fs", ylabel=f"median {label}", yscale="log")
        axes[0].legend()
        save(figure, folder / "known_truth.png")
