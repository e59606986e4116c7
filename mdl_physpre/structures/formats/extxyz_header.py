"""The header line of a frame of extended XYZ: ASE's parser, made strict where it guesses.

``Lattice``, ``Properties`` and ``pbc`` mean the same in any case. ``pbc`` is read direction by direction. A value that
cannot be parsed is an error that names its key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from ase.io.extxyz import key_val_str_to_dict

from mdl_physpre.errors import DataError
from mdl_physpre.structures.label_sources import ASYMMETRIC, is_asymmetric, numbers_in
from mdl_physpre.structures.labels import as_stress_matrix
from mdl_physpre.structures.state import is_label

RESERVED = {name.lower(): name for name in ("Lattice", "Properties", "pbc")}
TENSORS = ("stress", "virial")
PAIR = re.compile(
    r"""([^\s="'{}\[\]]+)\s*=\s*("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|\{[^}]*\}|\[[^\]]*\]|\S*)""", re.DOTALL
)
PROPERTIES = re.compile(r"[^:]+:[SRIL]:\d+(:[^:]+:[SRIL]:\d+)*")
TRUE, FALSE = {"t", "true", ".true.", "1", "yes"}, {"f", "false", ".false.", "0", "no"}


def parse_header(line: str) -> dict[str, Any]:
    """Keys and values of a header; raises DataError, with the key, for what cannot be meant."""
    seen: dict[str, str] = {}
    if re.sub(r"\\.", "", line).count('"') % 2 and re.search("lattice=|properties=", line, re.IGNORECASE):
        raise DataError(f"a quotation mark of the header is not closed: {line.strip()[:80]}")

    def canonical(match: re.Match[str]) -> str:
        key, value = match[1], match[2]
        name = RESERVED.get(key.lower(), key)
        if (name in RESERVED.values() or is_label(name)) and seen.setdefault(name, value) != value:
            raise DataError(f"the header holds {name} twice, {seen[name]} and {key}={value}; keep one of them")
        return f"{name}={value}" if name in RESERVED.values() else match[0]

    line = PAIR.sub(canonical, line)
    try:
        info = dict(key_val_str_to_dict(line))
    except (ValueError, TypeError):
        info = _key_by_key(line)
    for name in TENSORS:
        if name in info:
            given = numbers_in(info[name]) if isinstance(info[name], str) else info[name]
            info[name] = _tensor(name, given)
            if is_asymmetric(given):
                info[ASYMMETRIC] = True
    if "Properties" in info and not PROPERTIES.fullmatch(str(info["Properties"])):
        raise DataError(
            f"Properties is {str(info['Properties'])[:60]!r}; expected name:type:columns for each, types S, R, I or L, "
            "such as species:S:1:pos:R:3"
        )
    if "Properties" in info:
        info["Properties"] = _columns_of_atoms(str(info["Properties"]))
    if "Lattice" not in info:
        _refuse_other_name(info, ("cell", "box", "lattice_vectors"), "Lattice", (3, 6, 9))
    if "pbc" not in info:
        _refuse_other_name(info, ("periodic", "periodicity", "periodic_boundary_conditions"), "pbc", (1, 3))
    if "pbc" in info:
        info["pbc"] = directions(seen.get("pbc", str(info["pbc"])))
    return info


def _key_by_key(line: str) -> dict[str, Any]:
    """The same where ASE's parser raises for the whole: each pair by itself."""
    info: dict[str, Any] = {}
    for match in PAIR.finditer(line):
        key, text = match[1], match[2]
        try:
            info.update(key_val_str_to_dict(match[0]))
        except (ValueError, TypeError) as error:
            bare = text[1:-1] if text[:1] in "\"'{[" and text else text
            info[key] = _otherwise(key, bare, error)
    return info


def _otherwise(key: str, text: str, error: Exception) -> Any:
    if key in TENSORS:
        return numbers_in(text)
    if key == "Lattice":
        n = len(text.replace(",", " ").split())
        raise DataError(
            f"Lattice={text[:60]!r} has {n} entries; expected 9 numbers, the three vectors one after another, Å"
        )
    if text.startswith("_JSON "):  # of lists of different lengths, which no array can hold
        try:
            return json.loads(text.removeprefix("_JSON "))
        except ValueError as why:
            raise DataError(f"{key} is {text[:60]!r}, which is no JSON ({why})") from None
    raise DataError(f"{key} is {text[:60]!r}, which cannot be read ({error})") from error


def _tensor(name: str, value: Any) -> np.ndarray:
    try:
        return as_stress_matrix(value, name)
    except DataError:
        raise DataError(f"{name} is {' '.join(str(value).split())[:60]!r}; expected 6 or 9 numbers") from None


def _columns_of_atoms(properties: str) -> str:
    """``Properties`` with elements and positions as ASE calls them; raises DataError where it has none of these."""
    parts = properties.split(":")
    for k in range(0, len(parts), 3):
        parts[k] = {"species": "species", "pos": "pos", "z": "Z"}.get(parts[k].lower(), parts[k])
    names = parts[::3]
    for wanted in (("species", "Z"), ("pos",)):
        if not set(wanted) & set(names):
            raise DataError(f"Properties has no {' or '.join(wanted)}, only {', '.join(names)}; rename the column")
    return ":".join(parts)


def _refuse_other_name(info: dict[str, Any], names: Sequence[str], right: str, sizes: Sequence[int]) -> None:
    for key in info:
        if key.lower() in names and np.size(info[key]) in sizes:
            how = ", of nine numbers" if right == "Lattice" else ""
            raise DataError(f"the header has {key} and no {right}; rename it to {right}{how}")


def directions(text: str) -> list[bool]:
    """Whether each of three directions is periodic, from ``T T F``, ``TTF``, ``1 1 0``, ``true``, ``[T, T, F]``, …

    Raises DataError for what has another meaning, or none.
    """
    words = re.split(r"[\s,]+", text.strip("\"'[](){} \t").lower())
    if len(words) == 1 and words[0] not in TRUE | FALSE and len(words[0]) == 3:
        words = list(words[0])  # TTF, 110
    if len(words) == 1:
        words *= 3
    if len(words) != 3 or not set(words) <= TRUE | FALSE:
        raise DataError(f'pbc is {text[:40]}; expected T or F for each of three directions, such as pbc="T T F"')
    return [word in TRUE for word in words]


def columns(header: str) -> int | None:
    """How many columns ``Properties`` announces; ``None`` where there is none, or it is damaged."""
    for match in PAIR.finditer(header):
        if match[1].lower() == "properties":
            parts = match[2].strip("\"'").split(":")
            try:
                return sum(int(n) for n in parts[2::3])
            except ValueError:
                return None
    return None


def explain_frame(header: str, rows: Sequence[str], first_line: int) -> str | None:
    """What is wrong with the rows of a frame, whose first stands in line ``first_line``; ``None``: nothing is seen."""
    wanted = columns(header)
    if wanted is None:
        return None
    for k, row in enumerate(rows):
        if len(row.split()) != wanted:
            return (
                f"line {first_line + k}: {len(row.split())} columns, Properties announces {wanted}; "
                "the columns do not match, or the frame is cut short"
            )
    return None
