"""The embedded-atom potential with angular densities: its form, its fit, and as the teacher of a run."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.tersoff import Tersoff, TersoffParameters

import mdl_physpre
from mdl_physpre import build_graph
from mdl_physpre.analysis import prediction_errors
from mdl_physpre.eam_fit import AngularEAMSettings, EAMFitSettings, angular, fit_angular_eam, fit_eam
from mdl_physpre.errors import ConfigError, FitError
from mdl_physpre.potentials import load_potential, save_potential
from mdl_physpre.potentials.eam.angular import AngularEAM, spherical_harmonics
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.potentials.zbl import repulsion_beside_data
from mdl_physpre.pretraining import label
from mdl_physpre.report.measurements import measure
from mdl_physpre.runs.read import read_run
from mdl_physpre.structures import read_structures, write_structures
from mdl_physpre.utils.devices import threads
from mdl_physpre.workflow.config.file import parse_config

SMALL = AngularEAMSettings(cutoff=4.0, n_pair=4, n_radial=3, l_max=2)


def alloys(n: int, seed: int, rattle: float = 0.12) -> list[Atoms]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        atoms = bulk("Cu", cubic=True, a=3.75) * (2, 1, 1)
        atoms.numbers[rng.permutation(len(atoms))[:3]] = 79
        atoms.set_cell(atoms.cell[:] @ (np.eye(3) + rng.uniform(-0.04, 0.04, (3, 3))), scale_atoms=True)
        atoms.positions += rng.normal(0, rattle, atoms.positions.shape)
        found.append(atoms)
    return found


def test_spherical_harmonics_add_up_to_legendre_polynomials() -> None:
    u = torch.nn.functional.normalize(torch.randn(2, 50, 3, dtype=torch.float64), dim=-1)
    cos = (u[0] * u[1]).sum(-1)
    legendre = [torch.ones_like(cos), cos, 1.5 * cos**2 - 0.5, 2.5 * cos**3 - 1.5 * cos]
    products = spherical_harmonics(u[0], 3) * spherical_harmonics(u[1], 3)
    for k, expected in enumerate(legendre):
        torch.testing.assert_close(products[:, k * k : (k + 1) ** 2].sum(-1), expected)


def test_energies_are_those_of_pairs_and_angles_of_three_atoms() -> None:
    atoms = Atoms("AuCu2", [[0, 0, 0], [2.6, 0, 0], [-0.6, 2.5, 0.4]])
    potential = AngularEAM(["Cu", "Au"], 4.0, n_pair=2, n_radial=2, l_max=1)
    with torch.no_grad():  # of gold: the product of the densities of copper with l = 1, n = 0
        kinds, pairs = 2 * potential.n_pair, len(potential.first)
        place = next(k for k in range(pairs) if potential.first[k] == 0 == potential.second[k])
        potential.coefficients[1, kinds + place * 2 + 1] = 0.7
    found = float(evaluate(potential, build_graph(atoms, 4.0, dtype=torch.float64)).energies)
    vectors = atoms.positions[1:]
    r = np.linalg.norm(vectors, axis=1)
    radial = np.cos(np.pi * r / 8.0) ** 4
    cos = (vectors @ vectors.T) / np.outer(r, r)
    repulsion = label([atoms], AngularEAM(["Cu", "Au"], 4.0), workers=1)[0].get_potential_energy()
    assert found == pytest.approx(0.7 * float((np.outer(radial, radial) * cos).sum()) + repulsion, abs=1e-9)


def test_a_fit_finds_the_potential_that_labelled_the_data(tmp_path) -> None:
    structures = alloys(12, seed=0)
    radii = repulsion_beside_data(structures, [29, 79]).radii
    truth = AngularEAM([29, 79], 4.0, n_pair=4, n_radial=3, l_max=2, radii=radii)
    torch.manual_seed(0)
    with torch.no_grad():
        truth.coefficients.normal_(0, 0.05)
        energies = torch.zeros(119)
        energies[[29, 79]] = torch.tensor([-3.0, -4.0])
        truth.shift_reference(energies)
    labelled = label(structures, truth, workers=1)
    unseen = label(alloys(3, seed=1), truth, workers=1)
    fitted = fit_angular_eam(labelled[:9], SMALL)
    errors = prediction_errors(fitted, unseen)
    assert errors.forces_mae < 1e-3 and errors.energy_mae_mev_per_atom < 0.5 and errors.stress_mae_gpa < 0.02
    save_potential(tmp_path / "angular.pt", fitted)
    again = prediction_errors(load_potential(tmp_path / "angular.pt"), unseen)
    assert again.forces_mae == pytest.approx(errors.forces_mae, rel=1e-9)
    assert load_potential(tmp_path / "angular.pt").training_energies is not None


def silicon() -> Tersoff:
    """J. Tersoff, Phys. Rev. B 38, 9902 (1988)."""
    values = dict(
        m=3, gamma=1.0, A=1830.8, B=471.18, lambda1=2.4799, lambda2=1.7322, lambda3=0.0, beta=1.1e-6, n=0.78734,
        c=1.0039e5, d=16.217, h=-0.59825, R=2.85, D=0.15,
    )  # fmt: skip
    return Tersoff({("Si", "Si", "Si"): TersoffParameters(**values)})


def test_good_energies_and_good_forces_of_bonds_with_angles() -> None:
    rng = np.random.default_rng(0)
    structures = []
    for _ in range(14):
        atoms = bulk("Si", cubic=True)
        atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
        structures.append(atoms)
    labelled = label(structures, silicon, workers=1)
    train, val, test = labelled[:9], labelled[9:10], labelled[10:]
    angular = prediction_errors(fit_angular_eam(train), test)
    fitted = fit_eam(train, val, EAMFitSettings(cutoff=5.0, epochs=60), progress=False)
    plain = prediction_errors(fitted.potential, test)
    assert angular.forces_mae < 0.5 * plain.forces_mae
    assert angular.energy_mae_mev_per_atom < 0.5 * plain.energy_mae_mev_per_atom


def test_an_isolated_atom_and_blocks_of_edges_change_nothing_else(monkeypatch) -> None:
    labelled = label([*alloys(8, seed=4), Atoms("Cu", cell=[20.0] * 3, pbc=True)], EMT, workers=1)
    whole = fit_angular_eam(labelled[:7], SMALL)
    monkeypatch.setattr(angular, "BLOCK_EDGES", 37)
    blocks = fit_angular_eam(labelled[:7], SMALL)
    torch.testing.assert_close(blocks.coefficients, whole.coefficients, rtol=1e-4, atol=1e-6)
    alone = fit_angular_eam([*labelled[:7], labelled[8]], SMALL)
    assert fit_angular_eam(labelled[:7], SMALL, elements=[47]).elements == tuple(sorted({*whole.elements, 47}))
    assert prediction_errors(alone, labelled[7:8]).forces_mae < 0.2


def test_a_second_fit_is_closer_to_the_data_and_held_to_the_first_far_from_them() -> None:
    labelled = label(alloys(8, seed=6), EMT, workers=1)
    first, wild = (fit_angular_eam(labelled, AngularEAMSettings(ridge=ridge)) for ridge in (3e-3, 1e-8))
    asked = []

    def far(potential: AngularEAM) -> list[Atoms]:
        asked.append(potential)
        return label(alloys(6, seed=7, rattle=0.5), potential, workers=1)

    second = fit_angular_eam(labelled, far=far)
    assert torch.equal(asked[0].coefficients, first.coefficients)
    others = label(alloys(6, seed=8, rattle=0.5), first, workers=1)
    near, away = ({name: prediction_errors(p, s).forces_mae for name, p in
                   (("first", first), ("second", second), ("wild", wild))} for s in (labelled, others))  # fmt: skip
    assert near["second"] < 0.5 * near["first"]
    assert away["second"] < 0.5 * away["wild"]
    nothing = fit_angular_eam(labelled, far=lambda potential: [])
    without = fit_angular_eam(labelled, AngularEAMSettings(weight_far=0.0), far=far)
    assert len(asked) == 1, "without a weight nothing is asked for"
    assert torch.equal(nothing.coefficients, first.coefficients) and torch.equal(
        without.coefficients, first.coefficients
    )


def test_closer_than_the_data_nuclei_repel() -> None:
    labelled = label(alloys(10, seed=2), EMT, workers=1)
    fitted = fit_angular_eam(labelled[:8])
    energies = [
        one.get_potential_energy()
        for one in label([Atoms("Cu2", [[0, 0, 0], [0, 0, r]]) for r in (0.2, 0.4, 0.8, 1.2)], fitted, workers=1)
    ]
    assert all(near > far + 1 for near, far in zip(energies, energies[1:]))


def test_what_cannot_be_fitted_is_told() -> None:
    with pytest.raises(FitError, match="no training structures"):
        fit_angular_eam([])
    with pytest.raises(FitError, match="carries a label"):
        fit_angular_eam(alloys(2, seed=0))
    of_many = [Atoms(numbers=range(3, 23), positions=2.0 * np.arange(20)[:, None] * np.ones(3))]
    with pytest.raises(FitError, match="20 elements have .* coefficients even with n_radial 2"):
        fit_angular_eam(of_many)
    with pytest.raises(ConfigError, match="l_max"):
        AngularEAM(["Cu"], l_max=4)
    with pytest.raises(ConfigError, match="beyond the cutoff"):
        AngularEAM(["Cu"], cutoff=2.0)
    config = {"dataset": {"src": "x.extxyz"}, "model": {"name": "CGCNN"}}
    with pytest.raises(ConfigError, match="arguments: n_radia: unknown key; did you mean 'n_radial'"):
        parse_config(config | {"physpre": {"teacher": {"fit": "angular_eam", "arguments": {"n_radia": 3}}}})
    with pytest.raises(ConfigError, match="repulsion of the nuclei already"):
        parse_config(config | {"physpre": {"teacher": {"fit": "angular_eam", "short_range": "zbl"}}})
    with pytest.raises(ConfigError, match="set hot_frames.n to 0"):
        parse_config(config | {"physpre": {"hot_frames": {"n": 2}, "pretrain": {"online": True}}})
    with pytest.raises(ConfigError, match="one of fit, potential and calculator"):
        parse_config(config | {"physpre": {"teacher": {}}})


def test_a_run_fits_its_teacher(tmp_path, caplog) -> None:
    structures = alloys(12, seed=3)
    for atoms in structures:
        atoms.info["charge"] = 1
        atoms.set_tags(range(len(atoms)))
    write_structures(tmp_path / "cu.extxyz", label(structures, EMT, workers=1))
    config = parse_config({
        "dataset": {"src": str(tmp_path / "cu.extxyz"), "split": {"test": 0.2, "val": 0.2}},
        "model": {"name": "CGCNN", "dim1": 8, "dim2": 8, "gc_count": 1, "cutoff": 4.0},
        "optim": {"max_epochs": 1},
        "physpre": {
            "arms": ["pretrain", "hybrid"], "teacher": {"fit": "angular_eam", "arguments": {"n_radial": 3, "l_max": 1}},
            "perturbation": {"n_aug": 1}, "hot_frames": {"n": 2, "steps": 20, "temperature_end": 900},
            "pretrain": {"max_epochs": 1}, "dynamics": {"n_structures": 0},
            "report": {"formats": []},
        },
    })  # fmt: skip
    with caplog.at_level(logging.INFO):
        summary = mdl_physpre.run(config, out=tmp_path / "run")
    assert summary.teacher is not None and summary.teacher.name == "angular_eam" and summary.eam is None
    assert "angular densities" in caplog.text and summary.teacher.errors["test"].forces_mae < 0.3
    assert summary.pretraining_set.structures == 8 + 16, "perturbed structures and two hot frames of each of eight"
    made = read_structures(tmp_path / "run" / "2-pretraining-set" / "train.extxyz")
    hot = [atoms for atoms in made if "-hot-" in atoms.info["structure_id"]]
    assert all(atoms.info["charge"] == 1 and atoms.get_tags()[-1] == len(atoms) - 1 for atoms in hot)
    again = label(hot, load_potential(tmp_path / "run" / "1-teacher" / "teacher.pt"), workers=1)
    shift = summary.teacher.zero_of_energy["energies"]
    for one, other in zip(hot, again):
        np.testing.assert_allclose(one.get_forces(), other.get_forces(), atol=2e-5)
        zero = sum(shift[symbol] for symbol in one.symbols)
        assert one.get_potential_energy() == pytest.approx(other.get_potential_energy() + zero, abs=1e-3)
    fitted = load_potential(tmp_path / "run" / "1-teacher" / "teacher.pt")
    assert isinstance(fitted, AngularEAM) and fitted.n_radial == 3
    hybrid = load_potential(tmp_path / "run" / summary.arms["hybrid"].networks[0].checkpoint)
    assert torch.equal(hybrid.eam.coefficients, fitted.coefficients), "what hybrids add is the fitted teacher"
    curves = measure(read_run(tmp_path / "run"), lambda: {"train": structures, "test": structures[:2]}).curves.pairs
    assert curves["Cu-Au"].curves["teacher"][0] > 100, "the report draws what was fitted beside the networks"
    assert set(curves["Cu-Au"].curves) == {"teacher", "pretrain", "pretrain, before finetuning", "hybrid"}
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert mdl_physpre.run(config, out=tmp_path / "run").teacher == summary.teacher
    assert "angular densities" not in caplog.text, "the second time it is there"
    both = config.changed(physpre=config.physpre.changed(arms=["hybrid+zbl"]))
    with pytest.raises(ConfigError, match=r"'hybrid\+zbl': .*two would add up; leave out zbl"):
        mdl_physpre.run(both, out=tmp_path / "both")


def test_the_fit_gives_the_same_bits_with_any_number_of_threads() -> None:
    structures = label(alloys(3, seed=5), EMT, workers=1)
    found = []
    for number in (1, 2):
        with threads(number):
            found.append(fit_angular_eam(structures).coefficients)
    assert torch.equal(*found)
