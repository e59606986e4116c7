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
    frames = [frame for n in networks for frame in n["own"]["along"]]
    keys = ("energy_error", "forces_mae", "forces_rmse", "oracle_forces_rms")
    own = together([n["own"] for n in networks]) | {key: median(frame[key] for frame in frames) for key in keys}
    own |= {key: sum(n["own"][key] for n in networks) for key in ("too_deep", "wrong", "whole_and_wrong")}
    own["deepest"] = min(n["own"]["deepest"] for n in networks)
    return {
        "networks": len(networks),
        "errors": errors,
        "own": own,
        "breaking": together([n["breaking"] for n in networks]),
        "heating": ramps([n["heating"] for n in networks]),
        "rdf": {key: float(np.mean([n["rdf"][key] for n in networks])) for key in networks[0]["rdf"]},
    }


def together(counts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums of structures, failures and reasons."""
    reasons = {reason: sum(c["reasons"].get(reason, 0) for c in counts) for c in counts for reason in c["reasons"]}
    return {key: sum(c[key] for c in counts) for key in ("structures", "failed")} | {"reasons": reasons}


def ramps(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians of the temperatures at which structures broke and melted; ``None`` where most did not."""
    found: dict[str, Any] = {"structures": sum(len(ramp["broke"]) for ramp in each), "end": each[0]["end"]}
    for key in ("broke", "melted"):
        values = [value for ramp in each for value in ramp[key]]
        middle = median(np.inf if value is None else value for value in values)
        found[key] = None if np.isinf(middle) else middle
        found[f"{key}_structures"] = sum(value is not None for value in values)
    return found


def table(content: Mapping[str, Any]) -> str:
    """The arms in Markdown: errors on sets of structures, then what they do by themselves."""
    arms = content["arms"]
    first = [["", *(name.replace("_", " ") for name in arms["truth"]["errors"])]]
    second = [
        ["", "overlaps", "too deep", "whole and wrong", "energy off by", "forces off by", "RDF off by", "broken"]
        + ["heating: breaks at", "melts at"]
    ]
    for arm, found in arms.items():
        own, breaking, heating = found["own"], found["breaking"], found["heating"]
        n = own["structures"]
        first.append([arm, *(f"{e['energy']:.1f} / {e['forces']:.3f}" for e in found["errors"].values())])
        second.append([
            arm, f"{overlaps(own)} of {n}", f"{own['too_deep']} of {n}", f"{own['whole_and_wrong']} of {n}",
            f"{own['energy_error']:+.0f}", f"{own['forces_mae']:.2f}", f"{found['rdf']['mae']:.3f}",
            f"{overlaps(breaking)} of {breaking['structures']}",
            at(heating, "broke"), at(heating, "melted"),
        ])  # fmt: skip
    return f"{markdown(first)}\n{markdown(second)}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first of them the head."""
    head, *others = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "|---|" + "---:|" * (len(rows[0]) - 1), *others]) + "\n"


def at(heating: Mapping[str, Any], what: str) -> str:
    """A median temperature, and how many structures came to it."""
    count = f"{heating[f'{what}_structures']} of {heating['structures']}"
    if heating[what] is None:
        return f"not up to {heating['end']:.0f} K ({count})"
    return f"{heating[what]:.0f} K ({count})"


def overlaps(counts: Mapping[str, Any]) -> int:
    """How many structures failed by overlap."""
    return counts["reasons"].get("overlap", 0)


def draw(content: Mapping[str, Any], folder: Path) -> None:
    """Median errors along the own runs of each arm, and the share of structures not broken on the ramp."""
    networks = {arm: found for arm, found in content["networks"].items()}
    with styled() as plt:
        figure, axes = plt.subplots(1, 3, figsize=(9.6, 2.9))
        for arm, style in styles_of(networks).items():
            frames = [frame for n in networks[arm] for frame in n["own"]["along"]]
            times = sorted({frame["time_fs"] for frame in frames}) if arm != "truth" else []
            for axis, key in zip(axes, ("energy_error", "forces_mae")):
                middle = [median(abs(f[key]) for f in frames if f["time_fs"] == time) for time in times]
                axis.plot(times[1:], middle[1:], **style)
            broke = [value for n in networks[arm] for value in n["heating"]["broke"]]
            points = sorted(value for value in broke if value is not None)
            whole = [1 - k / len(broke) for k in range(len(points) + 1)]
            end = networks[arm][0]["heating"]["end"]
            axes[2].step([0, *points, end], [*whole, whole[-1]], where="post", label=arm, **style)
        axes[0].set(xlabel="time, fs", ylabel="error of energy, meV/atom", yscale="log", title="own runs, median")
        axes[1].set(xlabel="time, fs", ylabel="error of forces, eV/Å", yscale="log", title="own runs, median")
        axes[2].set(xlabel="temperature, K", ylabel="not broken", title="heating", ylim=(-0.05, 1.05))
        axes[2].legend()
        save(figure, folder / "known_truth.png")
