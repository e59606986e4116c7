"""Extended XYZ, by ASE's reader and writer.

The text is decompressed once and handed to ASE in memory: ASE seeks back after every frame, which in a compressed file
means decompressing from the start again and again.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import escape, key_val_str_to_dict, read_xyz, write_xyz

from mdl_physpre.errors import DataError
from mdl_physpre.structures.check import describe
from mdl_physpre.structures.formats.base import Format
from mdl_physpre.structures.formats.extxyz_header import explain_frame, parse_header
from mdl_physpre.structures.labels import LABELS
from mdl_physpre.utils.files import read_text, write_text
from mdl_physpre.utils.progress import progress

RESERVED = ("Lattice", "Properties", "pbc")


class ExtendedXYZ(Format):
    """Text, plain or gzip. Positions and forces are written with eight decimals (ASE's format), energy and stress with
    all digits."""

    title = "extended XYZ"
    endings = (".extxyz", ".xyz")
    zipped = True

    def read(self, path: Path) -> list[Atoms]:
        """Raises DataError for an empty, truncated or damaged file; file, structure and line are named."""
        text = read_text(path)
        n_frames = len(_check_frames(text, path))
        frames = read_xyz(io.StringIO(text), slice(None), properties_parser=parse_header)
        structures: list[Atoms] = []
        try:
            for atoms in progress(frames, total=n_frames, description=f"reading {path.name}"):
                structures.append(atoms)
        except Exception as error:  # ASE raises errors of many kinds on damaged text
            raise DataError(f"{path}: structure {len(structures)}: {_explain(error)}") from error
        if len(structures) != n_frames:
            raise DataError(f"{path}: {n_frames} structures were announced, {len(structures)} could be read")
        return structures

    def write(self, path: Path, structures: Sequence[Atoms]) -> None:
        """With labels in one place only, and ``info`` in a form that comes back as it is."""
        buffer = io.StringIO()
        for index, atoms in enumerate(progress(structures, description=f"writing {path.name}")):
            try:
                write_xyz(buffer, [_writable(atoms)])
            except Exception as error:
                raise DataError(
                    f"{path}: structure {describe(atoms, index)} cannot be written as extended XYZ: {error}"
                ) from error
        write_text(path, buffer.getvalue())


def _explain(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{error} is no element"
    if isinstance(error, DataError):
        return str(error)
    text = str(error).replace("ase.io.extxyz: ", "")
    return f"cannot be read ({type(error).__name__}: {text})"


def _check_frames(text: str, path: Path) -> list[int]:
    """The line, from 0, at which each frame begins; ASE itself stops without a word at a blank line.

    Raises DataError where a number of atoms or a column is missing.
    """
    lines = text.split("\n")
    line = 0
    frames: list[int] = []
    end = len(lines)
    while end and not lines[end - 1].strip():
        end -= 1
    while line < end:
        where = f"{path}: structure {len(frames)}, line {line + 1}"
        try:
            n_atoms = int(lines[line])
        except ValueError:
            found = lines[line].strip()[:40]
            raise DataError(
                f"{where}: found {found!r}; expected a number of atoms"
                + ("" if frames else " (is this an extended XYZ file?)")
            ) from None
        if n_atoms < 1:
            raise DataError(f"{where}: {n_atoms} atoms; expected at least one")
        if line + 2 + n_atoms > end:
            raise DataError(
                f"{where}: {n_atoms} atoms announced, the file ends after {max(0, end - line - 2)}; it is truncated"
            )
        wrong = explain_frame(lines[line + 1], lines[line + 2 : line + 2 + n_atoms], line + 3)
        if wrong:
            raise DataError(f"{path}: structure {len(frames)}: {wrong}")
        frames.append(line)
        line += 2 + n_atoms
        while line < end and lines[line].lstrip().startswith("VEC"):
            line += 1
    return frames


def _writable(atoms: Atoms) -> Atoms:
    """A copy whose ``info`` comes back from the file as it is, with labels in one place only."""
    copy: Atoms = atoms.copy()
    results: dict[str, Any] = {}
    calculator = atoms.calc
    if isinstance(calculator, SinglePointCalculator) or (
        calculator is not None and getattr(calculator, "results", None) and not calculator.check_state(atoms)
    ):
        results = {k: v for k, v in calculator.results.items() if v is not None}
        copy.calc = SinglePointCalculator(copy, **results)
    # A REF_ entry beside a calculator result would overrule that result when the file is read again.
    shadowed = {name for label in LABELS if label in results for name in (label, f"REF_{label}")}
    drop = {*RESERVED, *results, *shadowed}
    for name in drop & set(copy.arrays):
        del copy.arrays[name]
    copy.info = {str(k): _plain(v) for k, v in copy.info.items() if k not in drop and v is not None}
    return copy


def _plain(value: Any) -> Any:
    """A value in a form that the parser gives back unchanged."""
    if isinstance(value, str):
        return value if _survives(str(value)) else _as_json(str(value))
    if isinstance(value, np.ndarray):
        return value if value.ndim == 1 and value.dtype.kind in "ifb" and value.size > 1 else _plain(value.tolist())
    if isinstance(value, (list, tuple, dict)):
        return _as_json(value)
    return value


def _as_json(value: Any) -> str:
    text = json.dumps(value, default=lambda item: item.tolist() if hasattr(item, "tolist") else str(item))
    return "_JSON " + text.replace("\\", "\\\\")


@lru_cache(maxsize=4096)
def _survives(text: str) -> bool:
    if not text or "\n" in text or "\r" in text or text.startswith("_JSON "):
        return False
    try:
        parsed = key_val_str_to_dict(f"k={escape(text)} l=1").get("k")
    except (ValueError, TypeError):
        return False
    return isinstance(parsed, str) and parsed == text
