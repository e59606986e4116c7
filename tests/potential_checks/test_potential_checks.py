"""The doctor passes sound potentials, and names what is wrong with each broken one, and nothing else."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.lj import LennardJones

from mdl_physpre import PotentialCalculator
from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.potential_checks.atoms import PairCurve, pair_curves
from mdl_physpre.potential_checks.run import any_failed, checks_as_dict, examine, format_checks
from mdl_physpre.potential_checks.subject import Subject
from mdl_physpre.potentials import CGCNN, EAMInteraction
from mdl_physpre.potentials.adapters.from_ase import CalculatorPotential
from tests.helpers.broken_potentials import (
    CUTOFF,
    Attractive,
    DependsOnCell,
    DependsOnDirection,
    DependsOnHand,
    DependsOnOrder,
    DependsOnPlace,
    FewImages,
    ForcesOfWrongShape,
    Hollow,
    InSingle,
    InSingleWithWrongForces,
    Jumps,
    Kinks,
    MixesBatches,
    NeedsEdges,
    NotExtensive,
    NotFinite,
    PullsAlong,
    Random,
    Sound,
    StressOfWrongShape,
    WrongForces,
    WrongStress,
)


def failures(potential, structures=None, **options):
    """Names of the checks that failed, what comes after a colon left out."""
    checks = examine(potential, structures, progress=False, **options)
    return {check.name.partition(":")[0] for check in checks if check.verdict == "failed"}, checks


def verdict(checks, name):
    return next(check for check in checks if check.name == name)


def test_a_sound_potential_passes():
    failed, checks = failures(Sound())
    assert failed == set()
    assert not any_failed(checks)
    assert verdict(checks, "rotation: stress").verdict == "passed"
    assert verdict(checks, "single against double precision").verdict == "n/a"
    assert all(check.number is not None for check in checks if check.verdict == "passed")


BROKEN = [
    (DependsOnPlace, {"translation", "rotation", "mirror image", "lattice translation of one atom", "wrapping",
                      "net force", "supercell", "two far copies", "one atom alone", "one atom in a periodic cell",
                      "no neighbours"}),
    (DependsOnDirection, {"rotation", "mirror image"}),
    (DependsOnHand, {"mirror image"}),
    (DependsOnOrder, {"permutation", "no neighbours"}),
    (DependsOnCell, {"other cell of the lattice", "supercell"}),
    (FewImages, {"lattice translation of one atom", "other cell of the lattice"}),
    (Jumps, {"smooth at the cutoff, two atoms", "smooth at the cutoff, in a structure"}),
    (Kinks, {"smooth at the cutoff, two atoms", "smooth at the cutoff, in a structure"}),
    (WrongForces, {"forces are the slope of the energy"}),
    (WrongStress, {"stress is the slope of the energy"}),
    (StressOfWrongShape, {"rotation", "stress is the slope of the energy"}),
    (PullsAlong, {"net force", "rotation", "mirror image", "forces are the slope of the energy", "no neighbours"}),
    (NotExtensive, {"supercell", "two far copies", "no neighbours"}),
    (Attractive, {"two atoms at 0.3 Å", "pair Cu-Cu"}),
    (Hollow, {"two atoms at 0.3 Å"}),
    (NotFinite, {"two atoms at 0.3 Å", "pair Cu-Cu"}),
    (NeedsEdges, {"one atom alone", "no neighbours"}),
    (InSingle, set()),
    (InSingleWithWrongForces, {"forces are the slope of the energy"}),
]  # fmt: skip


@pytest.mark.parametrize(("broken", "expected"), BROKEN, ids=lambda p: getattr(p, "__name__", ""))
def test_a_broken_potential_fails_for_what_is_wrong_with_it(broken, expected):
    failed, checks = failures(broken())
    print(format_checks(checks))
    assert failed == expected


def test_random_numbers_are_named_and_those_of_the_program_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    failed, _ = failures(Random())
    assert "asked twice" in failed
    assert torch.equal(torch.rand(1), expected)


def test_an_answer_that_depends_on_the_batch_is_named():
    failed, checks = failures(MixesBatches())
    assert "alone or in a batch" in failed
    assert verdict(checks, "alone or in a batch: energy").number == pytest.approx(1e-3)
    assert "asked twice" not in failed


def test_numbers_are_what_they_say():
    _, checks = failures(WrongForces())
    check = verdict(checks, "forces are the slope of the energy")
    assert check.number == pytest.approx(1e-3 * check.bound / 1e-6 / 1.001, rel=0.5)  # of the largest force
    _, checks = failures(DependsOnPlace())
    assert verdict(checks, "net force").number == pytest.approx(4e-3)
    assert verdict(checks, "one atom alone").number == pytest.approx(1e-3)
    _, checks = failures(Kinks())
    # dE/dr of the pair energy changes from -phi(r_c)/r_c to 0
    slope = abs(float(Sound().pair(torch.tensor(CUTOFF, dtype=torch.float64)))) / CUTOFF
    assert verdict(checks, "smooth at the cutoff, two atoms: forces").number == pytest.approx(slope, rel=1e-2)
    assert verdict(checks, "smooth at the cutoff, two atoms: energy").verdict == "passed"
    _, checks = failures(Jumps())
    jump = abs(float(Sound().pair(torch.tensor(CUTOFF, dtype=torch.float64))))
    assert verdict(checks, "smooth at the cutoff, two atoms: energy").number == pytest.approx(jump, rel=1e-2)


def test_a_fall_behind_the_wall_is_a_warning():
    _, checks = failures(Hollow())
    check = verdict(checks, "pair Cu-Cu: rises inwards")
    assert check.verdict == "warning"
    assert "it first falls from" in check.text
    assert verdict(checks, "pair Cu-Cu: wall").verdict == "passed"


def test_curves_are_those_of_the_potential():
    potential = Sound()
    (curve,) = pair_curves(Subject(potential, [bulk("Cu", cubic=True)]))
    r = torch.tensor(curve.distances)
    np.testing.assert_allclose(curve.energies, potential.pair(r) * potential.switch(r), atol=1e-12)
    assert curve.distances[curve.minimum] == pytest.approx(2.2, abs=0.011)
    # 3 (1 - exp(-1.5 (r - 2.2)))^2 = 10
    assert curve.wall() == pytest.approx(2.2 - np.log(1 + np.sqrt(10 / 3)) / 1.5, abs=1e-3)
    assert curve.drop(1e-3) == (0.0, None, np.inf)


def test_walls_and_falls_of_made_up_curves():
    r = np.linspace(0.3, 3.0, 271)

    def curve(energies):
        minimum = 150 + int(np.argmin(energies[150:]))
        return PairCurve((1, 1), r, energies, minimum, 10.0)

    hill = curve(6.0 * np.exp(-(((r - 1.0) / 0.2) ** 2)) + (r - 2.5) ** 2)
    assert hill.wall() is None
    fall, where, height = hill.drop(1e-3)
    assert where == pytest.approx(1.0, abs=0.1)
    assert height == pytest.approx(8.2, abs=0.3)
    assert fall > 1.0
    assert curve(np.full(271, 0.0)).wall() is None
    steep = curve(100.0 * (3.0 - r))
    assert steep.wall() == pytest.approx(2.9)


@pytest.mark.parametrize("elements", [["Si"], ["Si", "O"], ["H", "C", "Au"]])
def test_the_embedded_atom_potential_passes(elements):
    failed, checks = failures(EAMInteraction(elements=elements, cutoff=5.5, n_basis=3))
    assert failed == set(), format_checks(checks)
    assert not [c for c in checks if c.verdict == "warning"]
    within_a_bond = {"pair H-H: height at 0.5 Å"} if "H" in elements else set()
    assert {c.name for c in checks if c.verdict == "n/a"} == {"single against double precision"} | within_a_bond


def network(**options):
    torch.manual_seed(0)
    sizes = {"dim1": 8, "dim2": 8, "gc_count": 2, "post_fc_count": 1, "edge_dim": 10}
    return CGCNN(elements=["Si", "O"], cutoff=5.0, **sizes, **options)


def test_cgcnn_passes_but_for_walls_which_it_has_not_learned():
    potential = network()
    failed, checks = failures(potential)
    assert {name for name in failed if not name.startswith(("pair", "two atoms at"))} == set(), format_checks(checks)
    assert {name for name in failed if name.startswith("pair")} == {"pair O-O", "pair O-Si", "pair Si-Si"}
    assert verdict(checks, "single against double precision").verdict == "passed"
    assert {p.dtype for p in potential.parameters()} == {torch.float32}  # it stays as it was


def test_cgcnn_without_envelope_is_not_smooth():
    failed, _ = failures(network(envelope=False))
    smooth = {"smooth at the cutoff, two atoms", "smooth at the cutoff, in a structure"}
    assert {name for name in failed if not name.startswith(("pair", "two atoms at"))} == smooth


def crystals():
    return [bulk("Cu", cubic=True), bulk("Cu", "hcp", a=2.55, c=4.1), Atoms("Cu3", np.diag([2.4, 2.3, 2.6]))]


def test_calculators_are_examined_too():
    calculator = CalculatorPotential(lambda: LennardJones(sigma=2.0, rc=5.0, ro=3.5, smooth=True))
    failed, checks = failures(calculator, crystals())
    assert failed == set(), format_checks(checks)
    unchecked = [c for c in checks if c.verdict == "n/a"]
    assert {c.name for c in unchecked} == {"smooth at the cutoff", "single against double precision"}
    assert all(c.text for c in unchecked)
    failed, checks = failures(calculator, crystals(), cutoff=5.0)
    assert verdict(checks, "smooth at the cutoff, two atoms: forces").verdict == "passed"
    cut = CalculatorPotential(lambda: LennardJones(sigma=2.0, rc=5.0))
    failed, _ = failures(cut, crystals(), cutoff=5.0)
    assert failed == {"smooth at the cutoff, two atoms", "smooth at the cutoff, in a structure"}


def test_a_calculator_in_single_precision_is_judged_by_what_single_precision_allows():
    class Wrong(PotentialCalculator):
        def calculate(self, *args, **kwargs):
            super().calculate(*args, **kwargs)
            self.results["forces"] = 1.3 * self.results["forces"]

    potential = EAMInteraction(elements=["Cu"], cutoff=5.0, n_basis=2)
    sound = CalculatorPotential(lambda: PotentialCalculator(potential, dtype=torch.float32))
    failed, checks = failures(sound, crystals())
    assert failed == set(), format_checks(checks)
    assert verdict(checks, "single against double precision").text.startswith("the potential computes in single")
    failed, _ = failures(CalculatorPotential(lambda: Wrong(potential, dtype=torch.float32)), crystals())
    assert failed == {"forces are the slope of the energy"}


def test_a_calculator_without_stress_has_its_stress_unchecked():
    class NoStress(LennardJones):
        implemented_properties = ["energy", "forces"]

    failed, checks = failures(CalculatorPotential(lambda: NoStress(sigma=2.0, rc=5.0)), crystals())
    assert failed == set()
    check = verdict(checks, "stress is the slope of the energy")
    assert (check.verdict, check.text) == ("n/a", "the potential gives no stress")
    assert verdict(checks, "rotation: stress").verdict == "n/a"


STRESS = {"rotation: stress", "stress is the slope of the energy"}


class StressRaises(LennardJones):
    """Lists stress among what it gives; ``error`` is what comes instead, ``factor`` makes forces wrong."""

    error: Exception = PropertyNotImplementedError("stress")
    factor = 1.0

    def get_property(self, name, *args, **kwargs):
        if name == "stress":
            raise self.error
        found = super().get_property(name, *args, **kwargs)
        return self.factor * found if name == "forces" else found


@pytest.mark.parametrize(
    ("error", "expected", "reason"),
    [
        (PropertyNotImplementedError("no stress here"), "n/a", "stress is not implemented"),
        (NotImplementedError("no stress here"), "n/a", "stress is not implemented"),
        (RuntimeError("lost"), "failed", "raised RuntimeError: lost"),
        (DataError("of a wrong kind"), "failed", "of a wrong kind"),
    ],
)
def test_stress_that_raises_is_judged_by_itself(error, expected, reason):
    def calculator(factor):
        made = StressRaises(sigma=2.0, rc=5.0)
        made.error, made.factor = error, factor
        return made

    sound = examine(CalculatorPotential(lambda: LennardJones(sigma=2.0, rc=5.0)), crystals(), progress=False)
    checks = examine(CalculatorPotential(lambda: calculator(1.0)), crystals(), progress=False)
    assert [c.name for c in checks] == [c.name for c in sound]
    assert {c.name: (c.verdict, c.number) for c in checks if c.name not in STRESS} == {
        c.name: (c.verdict, c.number) for c in sound if c.name not in STRESS
    }
    for name in STRESS:
        assert verdict(checks, name).verdict == expected
        assert reason in verdict(checks, name).text
    failed, _ = failures(CalculatorPotential(lambda: calculator(1.3)), crystals())
    assert "forces are the slope of the energy" in failed


FORCES = {"finite numbers", "determinism", "symmetry", "net force", "derivatives", "supercell", "no neighbours"}


@pytest.mark.parametrize("wrong", [lambda f: f[:-1], lambda f: f[:, :2], lambda f: f.reshape(-1), lambda f: f[None]])
def test_forces_of_a_wrong_shape_fail(wrong):
    class WrongShape(LennardJones):
        def calculate(self, *args, **kwargs):
            super().calculate(*args, **kwargs)
            self.results["forces"] = wrong(self.results["forces"])

    failed, checks = failures(CalculatorPotential(lambda: WrongShape(sigma=2.0, rc=5.0)), crystals())
    assert failed >= FORCES
    assert "gives forces of shape" in verdict(checks, "symmetry").text
    assert {c.name for c in checks if c.verdict == "n/a"} == {
        "smooth at the cutoff",
        "single against double precision",
    }


def test_forces_of_a_wrong_shape_fail_in_a_network_too():
    failed, checks = failures(ForcesOfWrongShape())
    assert failed >= FORCES
    assert verdict(checks, "net force").text == "raised ValueError: forces: shape (12, 2), expected (12, 3)"


def test_a_calculator_without_forces_fails_once():
    class EnergyAlone(LennardJones):
        implemented_properties = ["energy"]

    failed, checks = failures(CalculatorPotential(lambda: EnergyAlone(sigma=2.0, rc=5.0)), crystals())
    assert failed == {"finite numbers"}
    assert verdict(checks, "finite numbers").text.startswith("forces are not implemented: ")
    assert verdict(checks, "symmetry").verdict == "n/a"


@pytest.mark.parametrize("cutoff", [0.0, -5.0, np.nan, np.inf])
def test_a_cutoff_that_is_none_is_refused(cutoff):
    with pytest.raises(ConfigError, match=rf"the cutoff is {cutoff:g} Å"):
        examine(CalculatorPotential(lambda: LennardJones(sigma=2.0, rc=5.0)), crystals(), cutoff=cutoff)


def test_molecules_alone_leave_periodic_checks_out():
    _, checks = failures(Sound(), [Atoms("Cu3", np.diag([2.4, 2.3, 2.6]))])
    assert {c.name for c in checks if c.verdict == "n/a"} >= {
        "supercell",
        "wrapping",
        "lattice translation of one atom",
    }


def test_structures_are_asked_for_where_elements_are_many():
    with pytest.raises(DataError, match="takes any element: give structures"):
        examine(CGCNN(elements=None))
    with pytest.raises(DataError, match="takes 9 elements: give structures"):
        examine(Sound(tuple(range(20, 29))))
    with pytest.raises(DataError, match="no structures with atoms"):
        examine(Sound(), [Atoms()])
    with pytest.raises(DataError, match="holds Fe"):
        examine(Sound(), [bulk("Fe")])


def test_a_potential_that_cannot_be_evaluated_at_all_is_one_failure():
    class Dead(Sound):
        def atomic_energies(self, graph):
            raise RuntimeError("no weights")

    (check,) = examine(Dead(), progress=False)
    assert (check.verdict, check.text) == ("failed", "raised RuntimeError: no weights")


def test_given_structures_and_the_potential_stay_as_they_are():
    atoms = bulk("Cu", cubic=True)
    before = atoms.positions.copy()
    potential = Sound().train()
    examine(potential, [atoms], progress=False)
    np.testing.assert_array_equal(atoms.positions, before)
    assert potential.training


def test_the_same_seed_gives_the_same_numbers():
    first, second = (examine(Sound(), progress=False, seed=4) for _ in range(2))
    assert first == second
    assert first != examine(Sound(), progress=False, seed=5)


def test_table_and_json():
    _, checks = failures(Hollow())
    text = format_checks(checks)
    assert len(text.splitlines()) == len(checks) + 2
    assert text.splitlines()[-1].startswith(f"{sum(c.verdict == 'passed' for c in checks)} passed, 1 failed, 1 warning")
    assert any(
        line.startswith("failed") and "two atoms at 0.3 Å" in line and "≥ 0" in line for line in text.splitlines()
    )
    stored = json.loads(json.dumps(checks_as_dict(checks), allow_nan=False))
    assert stored["counts"]["failed"] == 1
    assert stored["checks"][0]["name"] == checks[0].name
    assert any_failed(checks)
