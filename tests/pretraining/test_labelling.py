from __future__ import annotations

from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import FileIOCalculator
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator

from mdl_physpre.errors import ConfigError, DataError, PhyspreError
from mdl_physpre.potentials.adapters.ase_calculator import PotentialCalculator
from mdl_physpre.potentials.base import Predictions
from mdl_physpre.pretraining import labelling as teacher_module
from mdl_physpre.pretraining.labelling import LabelFailure, compute_labels, estimated_edges, label
from mdl_physpre.pretraining.teacher import make_teacher, resolve_teacher
from mdl_physpre.structures.graph import GraphDataset
from mdl_physpre.structures.labels import get_labels
from mdl_physpre.utils import registry
from tests.helpers.pair_teachers import Fragile, SoftWall, soft_wall


@pytest.fixture()
def structures():
    rng = np.random.default_rng(4)
    made = [bulk("Si", cubic=True).repeat((1, 1, 1 + k % 3)) for k in range(30)]
    made += [Atoms("P", cell=[12, 12, 12], pbc=True), molecule("H2O"), Atoms("P2", [[0, 0, 0], [2, 0, 0]])]
    for k, atoms in enumerate(made):
        atoms.rattle(0.1, rng=rng)
        atoms.info["structure_id"] = f"s{k}"
    return made


def one_by_one(structures, calculator):
    found = []
    for atoms in structures:
        atoms = atoms.copy()
        atoms.calc = calculator
        stress = atoms.get_stress(voigt=False) if atoms.pbc.all() else None
        found.append((atoms.get_potential_energy(), atoms.get_forces(), stress))
    return found


def assert_labels(labelled, expected, tolerance):
    assert len(labelled) == len(expected)
    for atoms, (energy, forces, stress) in zip(labelled, expected):
        labels = get_labels(atoms)
        assert labels.energy == pytest.approx(energy, rel=tolerance, abs=tolerance)
        assert np.allclose(labels.forces, forces, rtol=tolerance, atol=tolerance)
        if stress is None:
            assert labels.stress is None
        else:
            assert np.allclose(labels.stress, stress, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5)])
def test_potential_labels_as_one_by_one(structures, monkeypatch, workers, dtype, tolerance):
    monkeypatch.setattr(teacher_module, "PARALLEL_FROM", 0)
    potential = SoftWall()
    expected = one_by_one(structures, PotentialCalculator(SoftWall(), dtype=torch.float64))
    labelled = label(structures, potential, batch_edges=3000, dtype=dtype, workers=workers)
    assert_labels(labelled, expected, tolerance)
    assert potential.depth.dtype == torch.float64  # the teacher itself is left as it was
    assert all(atoms.calc is None for atoms in structures)


@pytest.mark.parametrize("workers", [1, 2])
def test_calculators_label_as_one_by_one(structures, workers):
    expected = one_by_one(structures, LennardJones(rc=4.0))
    by_name = label(structures, "ase.calculators.lj.LennardJones", kwargs={"rc": 4.0}, workers=workers)
    assert_labels(by_name, expected, 1e-12)
    by_callable = label(structures, lambda: LennardJones(rc=4.0), workers=workers)
    assert_labels(by_callable, expected, 1e-12)


def test_old_labels_are_taken_off():
    atoms = bulk("Si")
    atoms.info.update(REF_energy=-5.0, group="a")
    atoms.arrays["REF_forces"] = np.ones((2, 3))
    atoms.calc = SinglePointCalculator(atoms, energy=99.0)
    (labelled,) = label([atoms], SoftWall())
    assert labelled.info == {"group": "a"}
    assert set(labelled.arrays) == {"numbers", "positions"}
    assert get_labels(labelled).energy != 99.0
    assert get_labels(atoms).energy == 99.0
    assert atoms.info["REF_energy"] == -5.0


@pytest.mark.parametrize("workers", [1, 2])
def test_failures_are_named_or_skipped(workers, caplog):
    structures = [bulk("Si"), molecule("H2O"), Atoms("P3", [[0, 0, 0], [2, 0, 0], [0, 2, 0]]), bulk("Cu")]
    structures[1].info["structure_id"] = "water"
    with pytest.raises(DataError, match=r"2 of 4 .*1 \(water\): RuntimeError: no oxygen.*2 \(no id\): forces is not"):
        label(structures, Fragile, workers=workers)
    labelled = label(structures, Fragile, workers=workers, on_error="skip")
    assert [str(atoms.symbols) for atoms in labelled] == ["Si2", "Cu"]
    assert "water" in caplog.text
    with pytest.raises(DataError, match="1 of 1"):
        label(structures[1:2], Fragile, on_error="skip")


def test_a_calculator_that_failed_starts_anew():
    """ASE's EMT looks at the elements only where they have changed, and they had, before it raised."""
    found = compute_labels([bulk("Si"), bulk("Si", a=5.6), bulk("Cu")], "ase.calculators.emt.EMT", workers=1)
    reason = "NotImplementedError: No EMT-potential for Si"
    assert [getattr(result, "reason", "") for result in found] == [reason, reason, ""]


class WrongShape(LennardJones):
    """Lennard-Jones with one result of another shape."""

    def __init__(self, which: str, value: object, **kwargs) -> None:
        super().__init__(**kwargs)
        self.which, self.value = which, value

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        self.results[self.which] = np.asarray(self.value)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("forces", np.ones((1, 3)), "forces have shape (1, 3); expected (2, 3)"),
        ("forces", np.ones(6), "forces have shape (6,); expected (2, 3)"),
        ("energy", [1.0, 2.0], "energy has shape (2,); expected one number"),
        ("stress", np.ones((2, 2)), "stress has shape (2, 2); expected (3, 3)"),
    ],
)
@pytest.mark.parametrize("short_range", [None, "zbl"])
def test_results_of_another_shape_are_failures(name, value, reason, short_range):
    """With a repulsion, which is added to what the calculator gives, and without."""
    teacher = make_teacher(f"{__name__}.WrongShape", {"which": name, "value": value}, short_range=short_range)
    (found,) = compute_labels([bulk("Si")], teacher, workers=1)
    assert isinstance(found, LabelFailure) and found.reason.startswith(reason)
    if name == "stress":  # it is not asked for where there is no cell
        (found,) = compute_labels([molecule("H2")], teacher, workers=1)
        assert found.stress is None and found.forces.shape == (2, 3)


@pytest.mark.parametrize("value", [np.array([1.0, 2.0, 3.0, 0, 0, 0]), np.diag([1.0, 2.0, 3.0])])
def test_stress_may_have_either_shape(value):
    (found,) = compute_labels([bulk("Si")], lambda: WrongShape("stress", value), workers=1)
    np.testing.assert_array_equal(found.stress, np.diag([1.0, 2.0, 3.0]))


def test_a_potential_of_another_shape_is_a_failure():
    class OneForce(SoftWall):
        def predictions(self, graph, forces=True, stress=True):
            n = len(graph.n_atoms)
            return Predictions(torch.zeros(n), torch.ones(1, 3), torch.zeros(n, 3, 3))

    found = compute_labels([bulk("Si"), bulk("Si", cubic=True)], OneForce(), workers=1)
    assert all(isinstance(result, LabelFailure) and "forces have shape" in result.reason for result in found)


@pytest.mark.parametrize("workers", [1, 2])
def test_one_bad_structure_does_not_spoil_its_batch(structures, monkeypatch, workers):
    monkeypatch.setattr(teacher_module, "PARALLEL_FROM", 0)
    found = compute_labels(structures, SoftWall(elements=(14, 15)), workers=workers, batch_edges=10**6)
    failed = [k for k, result in enumerate(found) if isinstance(result, LabelFailure)]
    assert failed == [31]
    assert "O" in found[31].reason
    flat = Atoms("Si2", [[0, 0, 0], [1, 1, 1]], cell=[[1, 0, 0], [2, 0, 0], [0, 0, 1]], pbc=True)
    found = compute_labels([structures[0], flat, structures[1]], SoftWall(), workers=workers)
    assert [isinstance(result, LabelFailure) for result in found] == [False, True, False]


def test_crash_of_a_worker_is_an_error_that_says_so():
    class Crash(LennardJones):
        def calculate(self, *args, **kwargs):
            import os

            os._exit(3)

    with pytest.raises(PhyspreError, match="workers=1"):
        label([bulk("Si"), bulk("Cu")], Crash, workers=2)


def test_calculators_that_write_files_get_folders_of_their_own(tmp_path):
    class Writes(FileIOCalculator):
        implemented_properties = ["energy", "forces"]

        def read_results(self):
            self.results = {"energy": 1.0, "forces": np.zeros((2, 3))}

        def execute(self):
            pass

    label([bulk("Si")] * 6, lambda: Writes(directory=tmp_path, command="true"), workers=2)
    folders = [path.name for path in tmp_path.iterdir()]
    assert folders
    assert all(name.startswith("worker-") for name in folders)


def test_teachers_by_name(monkeypatch):
    potential = resolve_teacher("tests.helpers.pair_teachers.SoftWall", {"depth": 1.5})
    assert isinstance(potential, SoftWall)
    assert potential.depth.item() == 1.5
    assert isinstance(resolve_teacher("ase.calculators.lj:LennardJones", {"rc": 3.0})(), LennardJones)

    point = EntryPoint("mine", "tests.helpers.pair_teachers:SoftWall", "mdl_physpre.teachers")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == point.group else [])
    assert isinstance(resolve_teacher("mine"), SoftWall)
    with pytest.raises(ConfigError, match="did you mean 'mine'"):
        resolve_teacher("mine2")


def test_function_that_returns_a_potential():
    atoms = bulk("Si")
    expected = get_labels(label([atoms], SoftWall(depth=1.0))[0])
    assert get_labels(label([atoms], soft_wall, kwargs={"depth": 1.0})[0]).energy == expected.energy


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("nothing", "no such checkpoint"),
        ("no.such.module.Class", "cannot be imported"),
        ("ase.calculators.lj.LenardJones", "did you mean 'LennardJones'"),
        (LennardJones(), "not the calculator itself"),
        (lambda: 3, "expected a potential or an ASE calculator"),
    ],
)
def test_wrong_teachers_are_named(wrong, message):
    with pytest.raises(ConfigError, match=message):
        label([bulk("Si")], wrong)
    with pytest.raises(ConfigError, match="takes no arguments"):
        label([bulk("Si")], SoftWall(), kwargs={"depth": 2})
    with pytest.raises(ConfigError, match="on_error"):
        label([bulk("Si")], SoftWall(), on_error="ignore")


def test_no_structures_give_no_labels():
    assert label([], SoftWall()) == []


def test_estimated_edges_are_of_the_right_size(structures):
    real = GraphDataset(structures[:30], 6.0, workers=1, labels=False).n_edges
    assert np.array(estimated_edges(structures[:30], 6.0)) == pytest.approx(real, rel=0.2)
