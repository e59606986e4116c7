"""A potential in LAMMPS by ``fix external``: the same energies, forces, pressures and motion as in our own dynamics."""

from __future__ import annotations

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk

from mdl_physpre.dynamics import DynamicsSettings, simulate
from mdl_physpre.errors import ConfigError, PhyspreError
from mdl_physpre.potentials import CGCNN, LAMMPSForces, PotentialCalculator
from tests.helpers.pair_potentials import Morse
from tests.potentials.test_lammps import lammps

PRESSURES = {"pxx": (0, 0), "pyy": (1, 1), "pzz": (2, 2), "pxy": (0, 1), "pxz": (0, 2), "pyz": (1, 2)}


def network() -> CGCNN:
    torch.manual_seed(3)
    return CGCNN(["O", "Si"], cutoff=4.0, dim1=8, dim2=8, gc_count=2, post_fc_count=1).double()


def copper() -> Atoms:
    atoms = bulk("Cu", "fcc", a=3.5, cubic=True).repeat((2, 2, 4))
    return sheared(atoms, 600)


def silica() -> Atoms:
    atoms = bulk("SiO", "rocksalt", a=4.4, cubic=True).repeat((2, 2, 2))
    return sheared(atoms, 300)


def sheared(atoms: Atoms, temperature: float) -> Atoms:
    """In a cell as LAMMPS has them, at an angle, with some atoms outside of it."""
    a, b, c = atoms.cell.lengths()
    atoms.set_cell([[a, 0, 0], [0.3 * a, b, 0], [-0.2 * a, 0.25 * b, c]], scale_atoms=True)
    atoms.rattle(0.05, seed=1)
    atoms.positions[::7] += atoms.cell[1] - atoms.cell[2]
    masses = atoms.get_masses()[:, None]
    speed = np.sqrt(temperature * units.kB / masses)
    atoms.set_momenta(masses * speed * np.random.default_rng(2).normal(size=(len(atoms), 3)))
    atoms.info["structure_id"] = "crystal"
    return atoms


def in_lammps(atoms: Atoms, elements: list[str], *commands: str, boundary: str = "p p p", metal: str = "metal"):
    """An instance of LAMMPS with the atoms, whose IDs are in another order than ours; and the ID of each atom."""
    lmp = lammps()
    (a, _, _), (xy, b, _), (xz, yz, c) = atoms.cell.array
    lmp.commands_string(
        f"units {metal}\natom_style atomic\natom_modify map array\nboundary {boundary}\n"
        f"region box prism 0 {a} 0 {b} 0 {c} {xy} {xz} {yz}\ncreate_box {len(elements)} box\n"
        "timestep 0.001\nthermo_modify norm no"
    )
    ids = np.random.default_rng(5).permutation(len(atoms)) + 1
    types = [elements.index(symbol) + 1 for symbol in atoms.symbols]
    velocities = atoms.get_velocities() * 1000 * units.fs  # Å/ps
    n = lmp.create_atoms(len(atoms), ids.tolist(), types, atoms.positions.ravel().tolist(), velocities.ravel().tolist())
    assert n == len(atoms)
    for k, symbol in enumerate(elements, start=1):
        lmp.command(f"mass {k} {Atoms(symbol).get_masses()[0]}")
    lmp.commands_string("\n".join(["pair_style none", "fix nve all nve", *commands]))
    return lmp, ids


def by_atom(lmp, name: str, ids: np.ndarray, kind: int = 1) -> np.ndarray:
    return np.array(lmp.gather_atoms(name, kind, 3)).reshape(-1, 3)[ids - 1]


@pytest.mark.parametrize(
    ("make", "crystal", "elements"), [(Morse, copper, ["Cu"]), (network, silica, ["Si", "O"])], ids=["Morse", "CGCNN"]
)
def test_constant_energy_step_by_step(tmp_path, make, crystal, elements):
    atoms, potential, steps = crystal(), make(), 200
    assert len(atoms) >= 64
    settings = DynamicsSettings(
        ensemble="nve", start_velocities="structures", timestep=1.0, steps=steps, trajectory_interval=1, skin=0.5,
        stop_on_overlap=False, stop_on_too_deep=False, lindemann_global=9, lindemann_local=9, fixcm=False,
    )  # fmt: skip
    simulate(potential, [atoms], settings, out=tmp_path, progress=False)
    (file,) = (tmp_path / "trajectories").iterdir()
    frames = ase.io.read(file, ":")
    assert len(frames) == steps + 1
    lmp, ids = in_lammps(atoms, elements)
    forces = LAMMPSForces(lmp, potential, elements)
    calculator = PotentialCalculator(potential)
    largest = np.abs(atoms.positions - frames[-1].positions).max()
    for step, frame in enumerate(frames):
        forces.command(f"run {min(step, 1)} post no")
        frame.calc = calculator
        assert lmp.get_thermo("pe") == pytest.approx(frame.get_potential_energy(), abs=1e-5)
        assert np.allclose(by_atom(lmp, "f", ids), frame.get_forces(), atol=2e-5)
        apart = atoms.cell.scaled_positions(by_atom(lmp, "x", ids) - frame.positions)
        assert np.abs(atoms.cell.cartesian_positions(apart - np.round(apart))).max() < 1e-5
        momenta = frame.get_momenta()
        kinetic = momenta.T @ (momenta / frame.get_masses()[:, None]) / frame.cell.volume
        pressure = (kinetic - frame.get_stress(voigt=False)) / units.bar
        for name, place in PRESSURES.items():
            assert lmp.get_thermo(name) == pytest.approx(pressure[place], abs=1.0, rel=1e-5)  # bar
    assert largest > 100 * 1e-5
    assert lmp.extract_global("ntimestep") == steps
    lmp.close()


def test_a_box_that_flips():
    """Sheared far, LAMMPS takes an equivalent box; the energy is that of the box that was sheared."""
    atoms, potential = silica(), network()
    atoms.set_momenta(np.zeros((len(atoms), 3)))
    a, (xy, b, _) = atoms.cell[0, 0], atoms.cell[1]
    lmp, ids = in_lammps(atoms, ["Si", "O"], "unfix nve", "fix shear all deform 1 xy vel 500 remap x flip yes")
    forces = LAMMPSForces(lmp, potential, {1: "Si", 2: "O"})
    forces.run(10)
    lmp.command("unfix shear")
    forces.run(0)
    assert lmp.extract_box()[2] == pytest.approx(xy + 5.0 - a)  # it has
    whole = atoms.copy()
    whole.set_cell([atoms.cell[0], [xy + 5.0, b, 0], atoms.cell[2]])
    whole.positions = by_atom(lmp, "x", ids)
    whole.calc = PotentialCalculator(potential)
    assert lmp.get_thermo("pe") == pytest.approx(whole.get_potential_energy(), abs=1e-8)
    assert np.allclose(by_atom(lmp, "f", ids), whole.get_forces(), atol=1e-8)
    lmp.close()


def test_atoms_in_empty_space():
    atoms = copper()
    atoms.positions -= atoms.positions.min(axis=0) - 1
    atoms.set_cell(np.diag(np.ptp(atoms.positions, axis=0) + 2))
    atoms.pbc = False
    lmp, ids = in_lammps(atoms, ["Cu"], boundary="f f f")
    potential = Morse()
    LAMMPSForces(lmp, potential, ["Cu"]).run(0)
    atoms.calc = PotentialCalculator(potential)
    assert np.allclose(by_atom(lmp, "f", ids), atoms.get_forces(), atol=1e-10)
    virial = np.sum(atoms.positions * atoms.get_forces())
    total = (virial + 2 * atoms.get_kinetic_energy()) / 3 / atoms.cell.volume / units.bar
    assert lmp.get_thermo("press") == pytest.approx(total, rel=1e-5)
    lmp.close()


class Fails(Morse):
    """Fails in its third step."""

    calls = 0

    def atomic_energies(self, graph):
        self.calls += 1
        if self.calls > 2:
            raise PhyspreError("the third step")
        return super().atomic_energies(graph)


def test_what_a_potential_raises_is_raised():
    """LAMMPS passes over errors of Python; the run is ended, and the error comes out."""
    lmp, _ = in_lammps(copper(), ["Cu"])
    forces = LAMMPSForces(lmp, Fails(), ["Cu"])
    with pytest.raises(PhyspreError, match="the third step"):
        forces.run(1000)
    assert lmp.extract_global("ntimestep") < 1000
    lmp.close()


@pytest.mark.parametrize(
    ("elements", "options", "text"),
    [
        (["Si"], {}, r"elements names types \[1\]; LAMMPS has types 1 to 2"),
        (["Si", "Xx1"], {}, "'Xx1' is no element"),
        (["Si", "C"], {}, "does not know C; it knows O, Si"),
        (["Si", "O"], {"metal": "real"}, "LAMMPS has units real"),
        (["Si", "O"], {"boundary": "p p f"}, "periodic in some directions only"),
    ],
)
def test_what_cannot_be_simulated(elements, options, text):
    atoms = silica()
    if options.get("boundary"):
        atoms.set_cell(np.diag(atoms.cell.lengths()), scale_atoms=True)
        atoms.wrap()
        atoms.positions = atoms.positions * 0.9 + 0.1
    lmp, _ = in_lammps(atoms, ["Si", "O"], **options)
    with pytest.raises(ConfigError, match=text):
        LAMMPSForces(lmp, network(), elements)
    lmp.close()
