"""Damaged and absurd files: every reader gives structures that pass the checks, or an error for users, soon.

    PHYSPRE_FUZZ=10000 python -m pytest tests/fuzz

tries so many.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.db import connect
from ase.io import write
from ase.units import GPa, Hartree
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mdl_physpre import label, read_structures
from mdl_physpre.errors import PhyspreError
from mdl_physpre.structures.write import write_structures
from tests.helpers.outputs_of_codes import abacus, cp2k, siesta
from tests.helpers.vasp_files import outcar, vasprun

EXAMPLES = int(os.environ.get("PHYSPRE_FUZZ", "150"))
SECONDS, MEGABYTES = 60, 1000
ABSURD = [
    "1e308", "-1e308", "nan", "NaN", "inf", "-0", "0", "1e9", "999999999999", "1e-300", "", "''", '"', "[]", "{}",
    "null", "true", "-1", "abc", "Å", "\0", "1,2", "1.2.3", "--", "0x10", "[[1]]", "*******",
]  # fmt: skip
NUMBER = re.compile(rb"[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?")
WORD = re.compile(rb"[A-Za-z_]{3,}")


def structures() -> list[Atoms]:
    rng, made = np.random.default_rng(1), []
    for k in range(3):
        atoms = bulk("Cu", "fcc", 3.6 + 0.05 * k, cubic=True)
        atoms.symbols[0] = "Au"
        atoms.rattle(0.1, rng=rng)
        atoms.info["config_type"] = "bulk"
        made.append(atoms)
    return label(made, EMT, workers=1, progress=False)


def mptrj(frames: list[Atoms]) -> str:
    content = {}
    for k, a in enumerate(frames):
        sites = [
            {"species": [{"element": s, "occu": 1}], "abc": list(map(float, p)), "label": s, "properties": {}}
            for s, p in zip(a.get_chemical_symbols(), a.get_scaled_positions())
        ]
        content[f"mp-{k}"] = {
            f"mp-{k}-0-0": {
                "structure": {"lattice": {"matrix": a.cell.tolist()}, "sites": sites},
                "corrected_total_energy": -4.0, "uncorrected_total_energy": -4.1, "force": a.get_forces().tolist(),
                "stress": np.eye(3).tolist(), "energy_per_atom": -1.0, "ef_per_atom": -1.0, "mp_id": f"mp-{k}",
            }
        }  # fmt: skip
    return json.dumps(content)


def dump(frames: list[Atoms]) -> str:
    lines = []
    for k, a in enumerate(frames):
        lines += ["ITEM: TIMESTEP", str(k), "ITEM: NUMBER OF ATOMS", str(len(a)), "ITEM: BOX BOUNDS pp pp pp"]
        lines += [f"0.0 {length}" for length in a.cell.lengths()]
        lines.append("ITEM: ATOMS id type element x y z fx fy fz")
        rows = zip(a.get_chemical_symbols(), a.positions, a.get_forces())
        lines += [f"{i + 1} 1 {s} {' '.join(map(str, (*p, *f)))}" for i, (s, p, f) in enumerate(rows)]
    return "\n".join(lines) + "\n"


def fitsnap(a: Atoms) -> str:
    stress = (-a.get_stress(voigt=False) / GPa).tolist()  # compression positive
    item = {
        "AtomTypes": a.get_chemical_symbols(), "Positions": a.positions.tolist(), "Lattice": a.cell.tolist(),
        "Energy": a.get_potential_energy(), "Forces": a.get_forces().tolist(), "Stress": stress, "NumAtoms": len(a),
    }  # fmt: skip
    return "# a configuration\n" + json.dumps({"Dataset": {"Data": [item], "StressStyle": "GPa"}})


def schnetpack(path: Path, frames: list[Atoms]) -> None:
    with connect(path) as database:
        for a in frames:
            properties = {"energy": np.array([a.get_potential_energy() / Hartree]), "forces": a.get_forces() / Hartree}
            database.write(Atoms(a.numbers, positions=a.positions, cell=a.cell, pbc=True), data=properties)
        units = {"energy": "Hartree", "forces": "Hartree/Ang"}
        database.metadata = {"_property_unit_dict": units, "_distance_unit": "Ang"}


def deepmd(folder: Path, frames: list[Atoms]) -> None:
    (folder / "set.000").mkdir(parents=True)
    (folder / "type.raw").write_text("1 0 0 0\n")
    (folder / "type_map.raw").write_text("Cu Au\n")
    for name, rows in (
        ("coord", [a.positions.ravel() for a in frames]), ("box", [a.cell[:].ravel() for a in frames]),
        ("energy", [a.get_potential_energy() for a in frames]), ("force", [a.get_forces().ravel() for a in frames]),
        ("virial", [-a.get_stress(voigt=False).ravel() * a.cell.volume for a in frames]),
    ):  # fmt: skip
        np.save(folder / "set.000" / f"{name}.npy", np.array(rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Right files of every format."""
    made, frames = tmp_path_factory.mktemp("right"), structures()
    for name in ("a.extxyz", "a.db", "matdeeplearn.json"):
        write_structures(made / name, frames)
    for name in ("ase.json", "POSCAR", "a.cif", "a.traj", "a.xyz"):
        write(made / name, frames if name in ("ase.json", "a.traj") else frames[0])
    schnetpack(made / "schnetpack.db", frames)
    (made / "fitsnap.json").write_text(fitsnap(frames[0]))
    (made / "mptrj.json").write_text(mptrj(frames))
    (made / "a.lammpstrj").write_text(dump(frames))
    (made / "OUTCAR").write_text(outcar([3, 4], [-7.0, -7.1]))
    (made / "vasprun.xml").write_text(vasprun([3, 4], [-7.0, -7.1]))
    deepmd(made / "deepmd", frames)
    if find_spec("dpdata"):
        abacus(made / "abacus")
        for name, text in (("siesta.out", siesta(1)), ("siesta-md.out", siesta(3)), ("cp2k.out", cp2k())):
            (made / name).write_text(text)
    return made


def mutated(content: bytes, draw: Callable[..., int]) -> bytes:
    """A few changes: bytes cut out, doubled or replaced, numbers made absurd, words renamed."""
    for _ in range(draw(1, 4)):
        kind, size = draw(0, 6), max(1, len(content))
        start = draw(0, size - 1)
        stop = min(size, start + draw(1, 400))
        if kind == 0:
            content = content[:start]
        elif kind == 1:
            content = content[:start] + content[stop:]
        elif kind == 2:
            content = content[:start] + content[start:stop] + content[start:]
        elif kind == 3:
            content = content[:start] + bytes([draw(0, 255)]) + content[start + 1 :]
        else:
            found = list((NUMBER if kind < 6 else WORD).finditer(content))
            if found:
                at = found[draw(0, len(found) - 1)]
                new = ABSURD[draw(0, len(ABSURD) - 1)].encode() if kind < 6 else at[0][::-1]
                content = content[: at.start()] + new + content[at.end() :]
    return content


def refuse_to_hang(*_: object) -> None:
    raise AssertionError(f"no answer after {SECONDS} s")


@settings(
    max_examples=EXAMPLES, deadline=None, database=None, derandomize="PHYSPRE_FUZZ" not in os.environ,
    suppress_health_check=list(HealthCheck), phases=[Phase.generate],  # smaller examples take minutes to find
)  # fmt: skip
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(folder, tmp_path_factory, data):
    name = data.draw(st.sampled_from(sorted(p.name for p in folder.iterdir())))
    place = tmp_path_factory.getbasetemp() / "damaged"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    target = place / name
    if (folder / name).is_dir():
        shutil.copytree(folder / name, target)
        inside = data.draw(st.sampled_from(sorted(p for p in target.rglob("*") if p.is_file())))
    else:
        inside = Path(shutil.copy(folder / name, target))
    inside.write_bytes(mutated(inside.read_bytes(), lambda low, high: data.draw(st.integers(low, high))))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.signal(signal.SIGALRM, refuse_to_hang)
    signal.alarm(SECONDS)
    try:
        found = read_structures(target)
    except PhyspreError as error:
        assert name in str(error) or "expected" in str(error), error
    else:
        assert found and all(isinstance(a, Atoms) and np.isfinite(a.positions).all() for a in found)
    finally:
        signal.alarm(0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1000 * MEGABYTES
