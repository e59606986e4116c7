"""Potentials that stand for reality in ``known_truth.py``, and the crystals and temperatures that go with them.

Each is a function that returns an ASE calculator, so that ``calculator:truths:kumagai`` opens it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.spacegroup import crystal
from scipy.optimize import minimize_scalar


def kumagai() -> Any:
    """Silicon: Kumagai, Izumi, Hara, Sakai, Comput. Mater. Sci. 39, 457 (2007)."""
    from matscipy.calculators.manybody import Manybody
    from matscipy.calculators.manybody.explicit_forms import kumagai as form

    return Manybody(**form.Kumagai(form.Kumagai_Comp_Mat_Sci_39_Si))


def stillinger_weber() -> Any:
    """Silicon: Stillinger, Weber, Phys. Rev. B 31, 5262 (1985)."""
    from matscipy.calculators.manybody import Manybody
    from matscipy.calculators.manybody.explicit_forms import stillinger_weber as form

    return Manybody(**form.StillingerWeber(form.Stillinger_Weber_PRB_31_5262_Si))


def emt() -> Any:
    """Metals: effective-medium theory, Jacobsen, Stoltze, Nørskov, Surf. Sci. 366, 394 (1996), as ASE has it."""
    return EMT()


def chgnet() -> Any:
    """Any element: Deng et al., Nat. Mach. Intell. 5, 1031 (2023). Its weights come with the package."""
    from chgnet.model.dynamics import CHGNetCalculator

    return CHGNetCalculator(use_device="cpu")


def diamond() -> list[Atoms]:
    """Silicon, 64 atoms."""
    return [bulk("Si", "diamond", a=5.43, cubic=True) * (2, 2, 2)]


def copper_gold() -> list[Atoms]:
    """Cu-Au, 32 atoms on the sites of an fcc crystal: three compositions, decorated at random."""
    made = []
    for seed, gold in enumerate((8, 16, 24)):
        atoms = bulk("Cu", "fcc", a=3.62 + 0.46 * gold / 32, cubic=True) * (2, 2, 2)
        atoms.numbers[np.random.default_rng(seed).permutation(32)[:gold]] = 79
        made.append(atoms)
    return made


def quartz_and_cristobalite() -> list[Atoms]:
    """SiO2, 36 and 24 atoms."""
    quartz = crystal(
        ["Si", "O"], [(0.470, 0, 0), (0.413, 0.267, 0.119)], spacegroup=152, cellpar=[4.916, 4.916, 5.405, 90, 90, 120]
    )
    cristobalite = crystal(
        ["Si", "O"], [(0.3, 0.3, 0), (0.239, 0.104, 0.179)], spacegroup=92, cellpar=[4.972, 4.972, 6.922, 90, 90, 90]
    )
    return [quartz * (2, 2, 1), cristobalite * (2, 1, 1)]


def spinel() -> list[Atoms]:
    """LiMn2O4, 56 atoms."""
    sites = [(1 / 8, 1 / 8, 1 / 8), (1 / 2, 1 / 2, 1 / 2), (0.263, 0.263, 0.263)]
    return [crystal(["Li", "Mn", "O"], sites, spacegroup=227, setting=2, cellpar=[8.24, 8.24, 8.24, 90, 90, 90])]


@dataclass(frozen=True)
class Truth:
    """A potential that is taken for the truth, and what is done with it.

    calculator : its name in this module. title : of tables. package : that it needs. crystals : where it all begins.
    temperatures : of the runs from which structures to train and test on are taken, K. hot : of two hot test sets, K.
    own : of the runs of each potential whose error is followed, K. breaking : of the runs that are counted, K.
    heating : end of the ramp, K.
    """

    calculator: str
    title: str
    package: str
    crystals: Callable[[], list[Atoms]]
    temperatures: tuple[float, ...]
    hot: tuple[float, float]
    own: float
    breaking: float
    heating: float

    @property
    def potential(self) -> str:
        """Its name for ``open_potential``."""
        return f"calculator:truths:{self.calculator}"

    @property
    def missing(self) -> str:
        """Why it cannot be had; empty where it can."""
        return "" if importlib.util.find_spec(self.package) else f"{self.package} is not installed"

    def structures(self, most: int) -> list[Atoms]:
        """So many of the crystals at most, each scaled to the volume of lowest energy."""
        calculator = globals()[self.calculator]()
        return [at_rest(atoms, calculator) for atoms in self.crystals()[:most]]


def at_rest(atoms: Atoms, calculator: Any) -> Atoms:
    """A copy of a structure, its cell scaled evenly to the lowest energy within 10 % of its lengths."""

    def scaled(factor: float) -> Atoms:
        copy = atoms.copy()
        copy.set_cell(atoms.cell[:] * factor, scale_atoms=True)
        return copy

    def energy(factor: float) -> float:
        copy = scaled(factor)
        copy.calc = calculator
        return float(np.squeeze(copy.get_potential_energy()))

    return scaled(minimize_scalar(energy, bounds=(0.9, 1.1), method="bounded", options={"xatol": 1e-5}).x)


SILICON = {
    "crystals": diamond, "temperatures": (300, 600, 900, 1200, 1500), "hot": (3000, 6000), "own": 3000,
    "breaking": 6000, "heating": 10_000,
}  # fmt: skip
TRUTHS = {
    "kumagai": Truth("kumagai", "Silicon, Kumagai", "matscipy", **SILICON),
    "stillinger_weber": Truth("stillinger_weber", "Silicon, Stillinger–Weber", "matscipy", **SILICON),
    "emt": Truth("emt", "Cu–Au, EMT", "ase", copper_gold, (300, 600, 900, 1200), (2000, 4000), 2500, 6000, 10_000),
    "sio2": Truth(
        "chgnet", "SiO2, CHGNet", "chgnet", quartz_and_cristobalite, (300, 900, 1500, 2000), (4000, 6000), 4000,
        6000, 10_000,
    ),
    "li_mn_o": Truth(
        "chgnet", "LiMn2O4, CHGNet", "chgnet", spinel, (300, 600, 900, 1200), (3000, 5000), 3000, 5000, 10_000
    ),
}  # fmt: skip
