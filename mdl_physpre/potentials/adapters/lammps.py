"""A potential as the forces of a simulation in LAMMPS, by ``fix external`` and LAMMPS's Python module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols

from mdl_physpre.errors import ConfigError, PhyspreError, nearest
from mdl_physpre.potentials.adapters.ase_calculator import PotentialCalculator
from mdl_physpre.potentials.base import Potential

VOIGT = ([0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2])  # xx, yy, zz, xy, xz, yz: LAMMPS's order


class LAMMPSForces:
    """Adds energy, forces and virial of a potential to what an instance of LAMMPS computes in each step.

    LAMMPS integrates, and keeps thermostats, barostats, fixes, computes and dumps. The potential sees all atoms in the
    cell that LAMMPS has in that step, so boxes may change, and flip. One process of LAMMPS; the potential computes on
    its own device.

    >>> lmp = lammps()
    >>> lmp.commands_string("units metal\\nboundary p p p\\nread_data silica.data\\npair_style none\\nfix 1 all nve")
    >>> LAMMPSForces(lmp, load_potential("trained.pt"), ["O", "Si"]).run(1000)

    Parameters
    ----------
    lmp : an instance of ``lammps.lammps``, ``units metal``, whose box exists.
    potential : any that :func:`~mdl_physpre.potentials.checkpoints.load.load_potential` opens.
    elements : symbols of the atom types, in order; or symbols by type.
    fix : ID of the fix. Its energy is part of ``pe``, its virial of the pressure; ``f_ID`` is its energy, eV.
    device : as in :class:`~mdl_physpre.potentials.adapters.ase_calculator.PotentialCalculator`.

    Raises
    ------
    ConfigError : other units, several processes, no box, a box that is periodic in some directions only or general
        triclinic, types without an element, or an element that the potential does not know.
    """

    def __init__(
        self,
        lmp: Any,
        potential: Potential,
        elements: Sequence[str] | Mapping[int, str],
        fix: str = "physpre",
        device: str | None = None,
    ) -> None:
        self._lammps, self._fix = lmp, fix
        self._numbers = _numbers_of_types(lmp, potential, elements)
        self._calculator = PotentialCalculator(potential, device)
        self._error: BaseException | None = None
        self._cell()  # raises for what cannot be simulated
        lmp.command(f"fix {fix} all external pf/callback 1 1")
        lmp.command(f"fix_modify {fix} energy yes virial yes")
        lmp.set_fix_external_callback(fix, self._add_forces, None)

    def run(self, steps: int) -> None:
        """``run STEPS``. Raises as :meth:`command`."""
        self.command(f"run {steps}")

    def command(self, text: str) -> None:
        """A command of LAMMPS, such as ``minimize``; other commands that compute forces belong here, too.

        Raises whatever the potential raised in a step: LAMMPS itself passes over errors of Python, and would go on.
        """
        self._error = None
        self._lammps.command(text)
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _add_forces(self, caller: Any, step: int, n_local: int, tag: Any, x: np.ndarray, f: np.ndarray) -> None:
        """What LAMMPS calls in each step, with its arrays of positions (Å) and of forces (eV/Å) to fill."""
        f[:] = 0.0
        if self._error is not None:
            return
        try:
            energy, f[:], virial = self._evaluate(n_local, x)
            self._lammps.fix_external_set_energy_global(self._fix, energy)
            self._lammps.fix_external_set_virial_global(self._fix, virial[VOIGT].tolist())
        except BaseException as error:
            self._error = error
            self._lammps.force_timeout()

    def _evaluate(self, n_local: int, x: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Energy, eV; forces, (n_atoms, 3), eV/Å, in LAMMPS's order of atoms; virial −V σ, (3, 3), eV."""
        types = np.asarray(self._lammps.numpy.extract_atom("type"))[:n_local]
        origin, cell, periodic = self._cell()
        atoms = Atoms(self._numbers[types], positions=x - origin, cell=cell, pbc=periodic)
        self._calculator.calculate(atoms)
        found = self._calculator.results
        if not (np.isfinite(found["energy"]) and np.isfinite(found["forces"]).all()):
            raise PhyspreError("the potential gives an energy or forces that are not finite; the simulation has broken")
        forces = found["forces"]
        if periodic:
            xx, yy, zz, yz, xz, xy = found["stress"]
            virial = -atoms.cell.volume * np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
        else:  # W = Σ r ⊗ F, whatever the origin, for the forces add up to nothing
            virial = atoms.positions.T @ forces
        return found["energy"], forces, virial

    def _cell(self) -> tuple[np.ndarray, np.ndarray, bool]:
        """Lower corner of the box, its vectors as rows, Å, and whether it is periodic."""
        low, high, xy, yz, xz, periodic, _ = self._lammps.extract_box()
        if any(periodic) and not all(periodic):
            raise ConfigError(
                "the box of LAMMPS is periodic in some directions only; use boundary p p p, with empty space around "
                "a slab, or f f f"
            )
        (lx, ly, lz), origin = np.subtract(high, low), np.array(low)
        return origin, np.array([[lx, 0, 0], [xy, ly, 0], [xz, yz, lz]]), bool(all(periodic))


def _numbers_of_types(lmp: Any, potential: Potential, elements: Sequence[str] | Mapping[int, str]) -> np.ndarray:
    """Atomic number of each type, from 1 on; after a look at what the instance can do."""
    if lmp.extract_setting("world_size") > 1:
        raise ConfigError(
            f"LAMMPS runs in {lmp.extract_setting('world_size')} processes; a potential sees all atoms in one. Start "
            "it without mpirun"
        )
    if (units := lmp.extract_global("units")) != "metal":
        raise ConfigError(f"LAMMPS has units {units}; a potential needs units metal (eV, Å, ps, bar)")
    if not lmp.extract_setting("box_exist"):
        raise ConfigError("LAMMPS has no box yet; read or create the atoms first")
    if lmp.extract_setting("triclinic_general") > 0:  # -1: a version that does not know it
        raise ConfigError("the box is general triclinic; give LAMMPS a restricted one (a along x, b in the xy plane)")
    n_types = int(lmp.extract_setting("ntypes"))
    given = dict(elements) if isinstance(elements, Mapping) else dict(enumerate(elements, start=1))
    if set(given) != set(range(1, n_types + 1)):
        raise ConfigError(f"elements names types {sorted(given)}; LAMMPS has types 1 to {n_types}: name one for each")
    symbols = [given[k] for k in range(1, n_types + 1)]
    wrong = [symbol for symbol in symbols if symbol not in atomic_numbers]
    if wrong:
        raise ConfigError(f"elements: {wrong[0]!r} is no element; {nearest(str(wrong[0]), chemical_symbols[1:])}")
    numbers = [atomic_numbers[symbol] for symbol in symbols]
    if (known := potential.known_elements()) is not None and (unknown := sorted(set(numbers) - known)):
        raise ConfigError(
            f"the potential does not know {', '.join(chemical_symbols[z] for z in unknown)}; it knows "
            f"{', '.join(chemical_symbols[z] for z in sorted(known))}"
        )
    return np.array([0, *numbers])
