"""Several simulations side by side: counts with intervals, and what differs on the structures that they share."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.dynamics.verdicts.statistics import permutation_p_value
from mdl_physpre.dynamics.verdicts.verdict import summarise
from mdl_physpre.errors import DataError
from mdl_physpre.report.tables.text import MISSING, counted, paired_sentence, shown, text_table

# how the work is done, and what else is measured, which change no verdict; the seed: other random numbers of the same
NO_PROTOCOL = (
    "seed", "skin", "max_edges", "compile", "checkpoint_steps", "checkpoint_seconds", "trajectory_interval",
    "pressure_interval",
    "rdf_interval", "rdf_start", "rdf_r_max", "rdf_bins", "rdf_smoothing",
)  # fmt: skip
PROTOCOL = tuple(name for name in DynamicsSettings.model_fields if name not in NO_PROTOCOL)
"""Settings of what was simulated and how it was judged: where they differ, counts are not of the same thing."""

SAME_START = 1e-5  # relative; more than what a structure changes by when it is written to a file and read again
NAMED = 5  # structures that a sentence names


@dataclass(frozen=True)
class Simulated:
    """Verdicts of one simulation, with its name and settings."""

    name: str
    settings: Mapping[str, Any]
    verdicts: Sequence[Mapping[str, Any]]

    def by_structure(self) -> dict[tuple[str, int], Mapping[str, Any]]:
        """Verdicts by the name of their structure and the number of earlier ones of the same name."""
        seen: Counter[str] = Counter()
        found = {}
        for verdict in self.verdicts:
            name = verdict["structure_id"]
            found[name, seen[name]] = verdict
            seen[name] += 1
        return found

    def value(self, setting: str) -> Any:
        """A setting; lowest and highest value, as text, where structures have their own."""
        own = sorted({v["conditions"][setting] for v in self.verdicts if setting in v.get("conditions", {})})
        if len(own) > 1:
            return f"{own[0]:g} to {own[-1]:g}"
        return own[0] if own else self.settings.get(setting)


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
    values = {key: [s.value(key) for s in simulations] for key in PROTOCOL}
    return {key: found for key, found in values.items() if any(v != found[0] for v in found)}


def same_start(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two verdicts are of the same structure at the start, as far as they tell.

    Names do not tell: structures without names are called by their places. Formula, number of atoms, smallest distance
    and volume at the start must be the same; a structure with which no step could be taken has only the first two.
    """
    if any(first.get(key) != second.get(key) for key in ("n_atoms", "formula")):
        return False
    for key in ("start_min_distance", "volume_start"):
        one, other = (v.get("metrics", {}).get(key) for v in (first, second))
        if one is not None and other is not None and not math.isclose(one, other, rel_tol=SAME_START):
            return False
    return True


def paired_counts(first: Simulated, second: Simulated) -> dict[str, Any]:
    """What two simulations of the same structures say, structure by structure.

    Structures that broke in both or in neither say nothing about a difference. Of the n = b + c that broke in one
    alone, either is as likely if there is no difference; the exact p-value is
    P = min(1, 2 Σ_{k ≤ min(b, c)} C(n, k) / 2^n) (Q. McNemar, Psychometrika 12, 153 (1947), exact form).

    Returns
    -------
    ``shared`` structures (same name and :func:`same_start`), ``first_only`` (b), ``second_only`` (c), ``both``,
    ``p_value`` (``None`` without a shared structure), and ``different``, names that both have for different structures.
    """
    from scipy.stats import binomtest

    left, right = first.by_structure(), second.by_structure()
    same = {key: same_start(left[key], right[key]) for key in left if key in right}
    pairs = [(left[k]["status"] == "failed", right[k]["status"] == "failed") for k, is_same in same.items() if is_same]
    b, c = sum(x and not y for x, y in pairs), sum(y and not x for x, y in pairs)
    p_value = None if not pairs else 1.0 if b + c == 0 else float(binomtest(b, b + c).pvalue)
    return {
        "shared": len(pairs),
        "first_only": b,
        "second_only": c,
        "both": sum(x and y for x, y in pairs),
        "p_value": p_value,
        "different": [key[0] for key, is_same in same.items() if not is_same],
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
    ``p_value`` (:func:`~mdl_physpre.dynamics.verdicts.statistics.permutation_p_value`).

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
    parts = [text_table(rows)]
    for pair in found["pairs"]:
        parts.append(paired_sentence(pair))
        if pair["different"]:
            parts.append(_different_sentence(pair))
    for key, values in found["differing_settings"].items():
        named = ", ".join(MISSING if v is None else str(v) for v in values)
        parts.append(f"They differ in {key}: {named}. Compare their counts with care.")
    return "\n".join(parts)


def _different_sentence(pair: Mapping[str, Any]) -> str:
    names = pair["different"]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return (
        f"Structures of the same name in {pair['first']} and {pair['second']} that differ in atoms or start, and are "
        f"not compared: {len(names)} ({', '.join(names[:NAMED])}{more})."
    )
