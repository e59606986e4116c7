"""Several simulations side by side: counts with intervals, and what differs on the structures that they share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdl_physpre.dynamics.several_networks import permutation_p_value
from mdl_physpre.dynamics.verdicts import summarise
from mdl_physpre.errors import DataError
from mdl_physpre.report.tables import MISSING, counted, paired_sentence, shown, text_table

# settings that say how a simulation was done; where they differ, counts cannot be compared without more ado
PROTOCOL = (
    "ensemble",
    "temperature",
    "timestep",
    "steps",
    "pressure",
    "overlap_ratio",
    "lindemann_local",
    "lindemann_global",
    "distance",
)


@dataclass(frozen=True)
class Simulated:
    """Verdicts of one simulation, with its name and settings."""

    name: str
    settings: Mapping[str, Any]
    verdicts: Sequence[Mapping[str, Any]]

    def by_structure(self) -> dict[tuple[int, str], bool]:
        """Whether each structure broke, by its place and name."""
        return {(v["index"], v["structure_id"]): v["status"] == "failed" for v in self.verdicts}


def read_simulations(folders: Sequence[str | Path]) -> list[Simulated]:
    """The simulations in folders of ``physpre md --out`` and of ``physpre run`` (one for each arm).

    Raises
    ------
    DataError : a folder without verdicts, or with a damaged file.
    """
    found = []
    for folder in map(Path, folders):
        own = [folder / "verdicts.json"] if (folder / "verdicts.json").is_file() else []
        files = own or sorted(folder.glob("4-dynamics/*/verdicts.json"))
        if not files:
            raise DataError(
                f"{folder}: holds neither verdicts.json nor 4-dynamics/ARM/verdicts.json; give a folder that "
                "physpre md --out or physpre run has finished"
            )
        for path in files:
            found.append(read_simulation(path, folder.name if own else f"{folder.name}: {path.parent.name}"))
    return found


def read_simulation(path: Path, name: str) -> Simulated:
    """One simulation from its ``verdicts.json``. Raises DataError for a missing or damaged file."""
    try:
        stored = json.loads(path.read_text())
        return Simulated(name, stored["settings"], stored["verdicts"])
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: cannot be read as verdicts ({error}); simulate again") from None


def differing_settings(simulations: Sequence[Simulated]) -> dict[str, list[Any]]:
    """Settings of the protocol that are not the same in all simulations, with the value in each."""
    values = {key: [s.settings.get(key) for s in simulations] for key in PROTOCOL}
    return {key: found for key, found in values.items() if any(v != found[0] for v in found)}


def paired_counts(first: Simulated, second: Simulated) -> dict[str, Any]:
    """What two simulations of the same structures say, structure by structure.

    Structures that broke in both or in neither say nothing about a difference. Of the n = b + c that broke in one
    alone, either is as likely if there is no difference; the exact p-value is
    P = min(1, 2 Σ_{k ≤ min(b, c)} C(n, k) / 2^n) (Q. McNemar, Psychometrika 12, 153 (1947), exact form).

    Returns
    -------
    ``shared`` structures, ``first_only`` (b), ``second_only`` (c), ``both``, and ``p_value`` (``None`` without a shared
    structure).
    """
    from scipy.stats import binomtest

    left, right = first.by_structure(), second.by_structure()
    pairs = [(left[k], right[k]) for k in left if k in right]
    b, c = sum(x and not y for x, y in pairs), sum(y and not x for x, y in pairs)
    p_value = None if not pairs else 1.0 if b + c == 0 else float(binomtest(b, b + c).pvalue)
    return {
        "shared": len(pairs),
        "first_only": b,
        "second_only": c,
        "both": sum(x and y for x, y in pairs),
        "p_value": p_value,
    }


def paired_with_first(simulations: Sequence[Simulated]) -> list[dict[str, Any]]:
    """:func:`paired_counts` of the first simulation with each of the others, with their names."""
    return [
        {"first": simulations[0].name, "second": other.name, **paired_counts(simulations[0], other)}
        for other in simulations[1:]
    ]


def arms_with_first(folder: Path, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The first arm of a run with each of the others.

    With one network for each arm they are compared structure by structure (:func:`paired_counts`), which leaves out
    that another training would have given other networks. With several, the networks are what is compared:
    ``first_each`` and ``second_each``, how many structures broke with each network; ``n_each``, of how many; and
    ``p_value`` (:func:`~mdl_physpre.dynamics.several_networks.permutation_p_value`).

    Raises
    ------
    DataError : as :func:`read_simulation`.
    """
    simulated = [arm for arm in summary["arms"] if summary[arm].get("dynamics")]
    if not simulated:
        return []
    if summary[simulated[0]]["dynamics"].get("networks", 1) == 1:
        return paired_with_first(
            [read_simulation(folder / "4-dynamics" / arm / "verdicts.json", arm) for arm in simulated]
        )
    each = {arm: summary[arm]["dynamics"]["failed"]["each"] for arm in simulated}
    first, *others = simulated
    n_each = summary[first]["dynamics"]["n"] // len(each[first])
    return [
        {
            "first": first,
            "second": other,
            "first_each": each[first],
            "second_each": each[other],
            "n_each": n_each,
            "p_value": permutation_p_value(each[first], each[other]),
        }
        for other in others
    ]


def compare(folders: Sequence[str | Path]) -> dict[str, Any]:
    """Simulations in folders, side by side.

    Returns
    -------
    ``simulations`` (name, settings, summary), ``pairs`` (each further one against the first, see
    :func:`paired_counts`), ``differing_settings``.

    Raises
    ------
    DataError : as :func:`read_simulations`.
    """
    simulations = read_simulations(folders)
    return {
        "simulations": [
            {"name": s.name, "settings": dict(s.settings), "summary": summarise(s.verdicts)} for s in simulations
        ],
        "pairs": paired_with_first(simulations),
        "differing_settings": differing_settings(simulations),
    }


def format_comparison(found: Mapping[str, Any]) -> str:
    """A comparison as text."""
    rows = [["simulation", "broken", "atom overlap", "Lindemann", "median failing step"]]
    for one in found["simulations"]:
        s = one["summary"]
        rows.append(
            [
                one["name"],
                counted(s["failed"]),
                counted(s["overlap"]),
                counted(s["lindemann"]),
                shown(s["median_failing_step"], "{:.0f}"),
            ]
        )
    parts = [text_table(rows), *map(paired_sentence, found["pairs"])]
    for key, values in found["differing_settings"].items():
        named = ", ".join(MISSING if v is None else str(v) for v in values)
        parts.append(f"They differ in {key}: {named}. Compare their counts with care.")
    return "\n".join(parts)
