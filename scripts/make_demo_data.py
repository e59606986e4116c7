#!/usr/bin/env python3
"""Make the demo's DFT data: small silica cells labelled by GPAW (PBE, plane waves).

Needs only ASE and GPAW (Debian: ``apt-get install gpaw gpaw-data``, then system Python)::

    OMP_NUM_THREADS=1 /usr/bin/python3 scripts/make_demo_data.py label WORK --part 1/2 &
    OMP_NUM_THREADS=1 /usr/bin/python3 scripts/make_demo_data.py label WORK --part 2/2 &
    wait
    /usr/bin/python3 scripts/make_demo_data.py collect WORK mdl_physpre/demo

``label`` writes one file for each structure into WORK and passes over those that stand, so it can be
stopped and started again. ``collect`` joins them into three files:

* ``silica.extxyz.gz``: quartz, cristobalite, tridymite, stishovite and sodalite cells of 6 to 18 atoms near
  equilibrium: snapshots of short hot runs with the BKS pair potential (van Beest, Kramer, van Santen,
  Phys. Rev. Lett. 64, 1955 (1990); damped shifted Coulomb sum).
* ``silica_strained.extxyz.gz``: the same phases, cells strained and atoms displaced at random. For testing only.
* ``silica_compressed.extxyz.gz``: the same phases with one pair of atoms pushed together to 0.45 to 0.95 of
  its distance. For testing only.

Labels: total energy in eV (consistent with the forces), forces in eV/Å, stress in eV/Å³ (tension positive).
"""

import argparse
import gzip
import io
import os
import sys
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.neighborlist import neighbor_list
from ase.spacegroup import crystal
from scipy.special import erfc

SEED = 2022
# Structures of each phase: (strained and rattled, snapshots of a hot run, one pair compressed)
COUNTS = {
    "quartz": (40, 36, 20),
    "cristobalite": (28, 28, 12),
    "beta_cristobalite": (36, 30, 14),
    "tridymite": (16, 16, 6),
    "stishovite": (24, 16, 8),
    "sodalite": (6, 6, 0),
}


def phases():
    """Experimental or idealised cells of SiO2, primitive where that is smaller."""
    sodalite = crystal(
        ["Si", "O"],
        [(0.25, 0.5, 0.0), (0.352, 0.352, 0.0)],
        spacegroup=229,
        cellpar=[8.965] * 3 + [90] * 3,
        primitive_cell=True,
    )
    beta = crystal(
        ["Si", "O"],
        [(0.0, 0.0, 0.0), (0.09, 0.25, 0.125)],
        spacegroup=122,
        cellpar=[5.05, 5.05, 7.14, 90, 90, 90],
        primitive_cell=True,
    )
    return {
        "quartz": crystal(
            ["Si", "O"],
            [(0.4697, 0.0, 2 / 3), (0.4133, 0.2672, 0.7855)],
            spacegroup=154,
            cellpar=[4.916, 4.916, 5.405, 90, 90, 120],
        ),
        "cristobalite": crystal(
            ["Si", "O"],
            [(0.3003, 0.3003, 0.0), (0.2392, 0.1044, 0.1787)],
            spacegroup=92,
            cellpar=[4.972, 4.972, 6.922, 90, 90, 90],
        ),
        "beta_cristobalite": beta,
        "tridymite": crystal(
            ["Si", "O", "O"],
            [(1 / 3, 2 / 3, 0.062), (1 / 3, 2 / 3, 0.25), (0.5, 0.0, 0.0)],
            spacegroup=194,
            cellpar=[5.15, 5.15, 8.40, 90, 90, 120],
        ),
        "stishovite": crystal(
            ["Si", "O"],
            [(0.0, 0.0, 0.0), (0.3062, 0.3062, 0.0)],
            spacegroup=136,
            cellpar=[4.180, 4.180, 2.667, 90, 90, 90],
        ),
        "sodalite": sodalite,
    }


class BKS(Calculator):
    """BKS silica with a damped shifted-force Coulomb sum and a wall where its dispersion term collapses."""

    implemented_properties = ["energy", "forces"]
    A = {("O", "Si"): 18003.7572, ("O", "O"): 1388.7730}
    B = {("O", "Si"): 4.87318, ("O", "O"): 2.76}
    C = {("O", "Si"): 133.5381, ("O", "O"): 175.0}
    WALL = {("O", "Si"): 1.25, ("O", "O"): 1.9, ("Si", "Si"): 2.2}
    CHARGE = {"Si": 2.4, "O": -1.2}
    CUTOFF, ALPHA, COULOMB = 5.5, 0.30, 14.399645

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        symbols = np.array(atoms.get_chemical_symbols())
        charge = np.array([self.CHARGE[s] for s in symbols])
        i, j, r, vector = neighbor_list("ijdD", atoms, self.CUTOFF)
        rc, a = self.CUTOFF, self.ALPHA
        gauss = 2 * a / np.sqrt(np.pi)
        slope = erfc(a * rc) / rc**2 + gauss * np.exp(-((a * rc) ** 2)) / rc
        qq = self.COULOMB * charge[i] * charge[j]
        energy = qq * (erfc(a * r) / r - erfc(a * rc) / rc + slope * (r - rc))
        dEdr = qq * (-erfc(a * r) / r**2 - gauss * np.exp(-((a * r) ** 2)) / r + slope)
        for pair in self.WALL:
            on = ((symbols[i] == pair[0]) & (symbols[j] == pair[1])) | (
                (symbols[i] == pair[1]) & (symbols[j] == pair[0])
            )
            x, wall = r[on], self.WALL[pair]
            e, d = np.zeros_like(x), np.zeros_like(x)
            if pair in self.A:
                y = np.maximum(x, wall)  # below the wall the Buckingham term is continued by its tangent
                e = self.A[pair] * np.exp(-self.B[pair] * y) - self.C[pair] / y**6
                d = -self.A[pair] * self.B[pair] * np.exp(-self.B[pair] * y) + 6 * self.C[pair] / y**7
                e = e + d * (x - y)
            under = np.minimum(x - wall, 0.0)
            energy[on] += e + 100.0 * under**2
            dEdr[on] += d + 200.0 * under
        forces = np.zeros((len(atoms), 3))
        np.add.at(forces, i, (dEdr / r)[:, None] * vector)
        self.results = {"energy": 0.5 * energy.sum(), "forces": forces}


def near_equilibrium(base, rng):
    atoms = base.copy()
    strain = rng.uniform(-0.02, 0.02, (3, 3))
    deformation = np.eye(3) + 0.5 * (strain + strain.T) + np.eye(3) * rng.uniform(-0.02, 0.02)
    atoms.set_cell(atoms.cell[:] @ deformation, scale_atoms=True)
    atoms.positions += rng.normal(0.0, rng.uniform(0.01, 0.07), atoms.positions.shape)
    atoms.info["origin"] = "strained_rattled"
    return atoms


def hot_run(base, count, rng):
    """Snapshots every 100 fs of Langevin runs at 300 to 1500 K, a new run for every four."""
    frames = []
    while len(frames) < count:
        atoms = base.copy()
        atoms.set_cell(atoms.cell[:] * rng.uniform(0.98, 1.03), scale_atoms=True)
        atoms.calc = BKS()
        temperature = rng.uniform(300, 1500)
        MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=rng)
        run = Langevin(atoms, 1.0 * units.fs, temperature_K=temperature, friction=0.02 / units.fs, rng=rng)
        for _ in range(4):
            run.run(100)
            frame = Atoms(atoms.get_chemical_symbols(), positions=atoms.positions, cell=atoms.cell, pbc=True)
            frame.info.update(origin="hot_run", temperature=round(temperature))
            frames.append(frame)
    return frames[:count]


def compressed(base, kind, rng):
    """Push one pair of a kind to 0.45-0.95 of its distance, both atoms moving by half."""
    atoms = base.copy()
    atoms.positions += rng.normal(0.0, 0.03, atoms.positions.shape)
    i, j, r, vector = neighbor_list("ijdD", atoms, 4.0)
    symbols = np.array(atoms.get_chemical_symbols())
    names = np.array(["-".join(sorted((symbols[a], symbols[b]))) for a, b in zip(i, j)])
    near = np.flatnonzero((names == kind) & (i < j))
    near = near[r[near] < r[near].min() * 1.15]
    k = rng.choice(near)
    factor = rng.uniform(0.45, 0.95)
    shift = 0.5 * (1 - factor) * vector[k]
    atoms.positions[i[k]] += shift
    atoms.positions[j[k]] -= shift
    atoms.info.update(
        origin="compressed", pair=kind, factor=round(float(factor), 4), distance=round(float(factor * r[k]), 4)
    )
    return atoms


def make_structures():
    found = []
    for number, (name, base) in enumerate(phases().items()):
        rng = np.random.default_rng([SEED, number])
        n_near, n_hot, n_compressed = COUNTS[name]
        made = [near_equilibrium(base, rng) for _ in range(n_near)]
        made += hot_run(base, n_hot, np.random.RandomState(SEED + number))
        kinds = ["O-Si", "O-O", "Si-Si"]
        made += [compressed(base, kinds[k % 3], rng) for k in range(n_compressed)]
        for k, atoms in enumerate(made):
            atoms.info.update(config_type=name, name=f"{name}-{k:03d}")
        found += made
    return found


# dE/dE_cut at 400 eV for one SiO2, from the energies of a quartz cell at 385 and 415 eV. GPAW needs it to take the
# incomplete basis out of the stress (Pulay stress, here 0.36 eV/Å³): what is left agrees with finite differences of
# the energy over volume (-0.068 against -0.077 eV/Å³ on that cell) and with 700 eV (-0.049).
ENERGY_SLOPE = -0.0542


def label(atoms):
    from gpaw import GPAW, PW, FermiDirac

    atoms = atoms.copy()
    slope = ENERGY_SLOPE * atoms.get_chemical_symbols().count("Si")
    atoms.calc = GPAW(
        mode=PW(400, dedecut=slope),
        xc="PBE",
        kpts={"density": 1.25},
        txt=None,
        nbands=-4,
        occupations=FermiDirac(0.05),
        symmetry={"point_group": False},
        maxiter=60,
    )
    energy = atoms.get_potential_energy(force_consistent=True)
    forces, stress = atoms.get_forces(), atoms.get_stress(voigt=False)
    forces = forces - forces.mean(axis=0)  # the grid leaves a small net force
    atoms.calc = None
    atoms.info.update(REF_energy=energy, REF_stress=stress)
    atoms.arrays["REF_forces"] = forces
    return atoms


def run_labels(folder, part, order_seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    prepared = folder / "structures.traj"
    if not prepared.exists():
        temporary = folder / f"structures-{os.getpid()}.traj"
        write(temporary, make_structures())
        os.replace(temporary, prepared)
    structures = read(prepared, ":")
    turn, parts = part
    # A fixed shuffle, so that a run stopped early has every phase.
    order = np.random.default_rng(order_seed).permutation(len(structures))
    for k in order[turn - 1 :: parts]:
        atoms = structures[k]
        target = folder / f"{atoms.info['name']}.extxyz"
        failed = target.with_suffix(".failed")
        if target.exists() or failed.exists():
            continue
        try:
            done = label(atoms)
        except Exception as error:
            failed.write_text(f"{type(error).__name__}: {error}\n")
            print(atoms.info["name"], "failed:", error, flush=True)
            continue
        text = io.StringIO()
        write(text, done, format="extxyz")
        temporary = target.with_suffix(".part")
        temporary.write_text(text.getvalue())
        os.replace(temporary, target)
        print(atoms.info["name"], len(atoms), "atoms", flush=True)


KEPT = ("name", "config_type", "origin", "temperature", "pair", "factor", "distance", "REF_energy", "REF_stress")


def collect(folder, out):
    out.mkdir(parents=True, exist_ok=True)
    of_origin = {"hot_run": "silica", "strained_rattled": "silica_strained", "compressed": "silica_compressed"}
    files = {f"{name}.extxyz.gz": [] for name in of_origin.values()}
    for path in sorted(folder.glob("*.extxyz")):
        atoms = read(path)
        atoms.info = {k: v for k, v in atoms.info.items() if k in KEPT}
        files[f"{of_origin[atoms.info['origin']]}.extxyz.gz"].append(atoms)
    for name, structures in files.items():
        text = io.StringIO()
        write(text, structures, format="extxyz")
        # mtime=0 and no name: the same structures give the same bytes
        (out / name).write_bytes(gzip.compress(text.getvalue().encode(), 9, mtime=0))
        print(f"{name}: {len(structures)} structures, {(out / name).stat().st_size / 1024:.0f} kB")
    failed = sorted(folder.glob("*.failed"))
    print(f"{len(failed)} structures whose self-consistency cycle failed", *[f.stem for f in failed])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("label")
    one.add_argument("work", type=Path)
    one.add_argument("--part", default="1/1", help="K/N: this process does every N-th structure, starting at K")
    two = commands.add_parser("collect")
    two.add_argument("work", type=Path)
    two.add_argument("out", type=Path)
    given = parser.parse_args()
    if given.command == "label":
        run_labels(given.work, tuple(int(x) for x in given.part.split("/")))
    else:
        collect(given.work, given.out)


if __name__ == "__main__":
    sys.exit(main())
