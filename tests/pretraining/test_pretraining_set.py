from __future__ import annotations

import json

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.potentials.adapters.ase_calculator import PotentialCalculator
from mdl_physpre.pretraining import labelling as teacher_module
from mdl_physpre.pretraining.labelling import label
from mdl_physpre.pretraining.perturbation import PerturbationSettings, PerturbedParent
from mdl_physpre.pretraining.pretraining_set import OnlinePretrainingSet, make_pretraining_set
from mdl_physpre.pretraining.set_report import SetReport, format_report, smallest_distances
from mdl_physpre.structures.labels import get_labels
from mdl_physpre.structures.neighbours import closest_by_elements, pairs_within
from tests.helpers.pair_teachers import Fragile, SoftWall


@pytest.fixture()
def parents():
    rng = np.random.default_rng(1)
    made = [bulk("Si", cubic=True), bulk("NaCl", "rocksalt", a=5.6, cubic=True), Atoms("P", cell=[9] * 3, pbc=True)]
    for k, atoms in enumerate(made):
        atoms.rattle(0.05, rng=rng)
        atoms.info["structure_id"] = f"p{k}"
    return made


def largest_forces(structures):
    return np.array([np.linalg.norm(get_labels(atoms).forces, axis=1).max() for atoms in structures])


def same(a, b):
    assert [x.info for x in a] == [y.info for y in b]
    for x, y in zip(a, b):
        assert (x.positions == y.positions).all()
        assert get_labels(x).energy == get_labels(y).energy


def test_set_is_complete_labelled_and_counted(parents):
    chosen = PerturbationSettings(max_force=None, min_distance=0.0)
    made = make_pretraining_set(parents, chosen, SoftWall(), seed=3)
    assert [(a.info["parent"], a.info["round"]) for a in made.structures] == [
        (f"p{k}", r) for k in range(3) for r in range(5)
    ]
    assert len({a.info["structure_id"] for a in made.structures}) == 15
    assert [a.info["pull_strength"] for a in made.structures[:5]] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    for atoms in made.structures:
        again = atoms.copy()
        again.calc = PotentialCalculator(SoftWall())
        assert get_labels(atoms).energy == pytest.approx(again.get_potential_energy(), rel=1e-5)
        assert np.allclose(get_labels(atoms).forces, again.get_forces(), atol=1e-4)
        assert np.allclose(get_labels(atoms).stress, again.get_stress(voigt=False), atol=1e-5)
    report = made.report
    assert report.drawn == report.structures == report.wanted == 15
    assert report.rejected == {}
    assert report.redrawn == report.weakened == report.given_up == 0
    assert report.labels["perturbed"]["largest_force"]["1"] == pytest.approx(largest_forces(made.structures).max())
    assert SetReport.model_validate(json.loads(json.dumps(report.plain()))) == report
    assert "15 of 15" in format_report(report)


def test_force_bound_is_kept_and_every_draw_counted(parents):
    free = make_pretraining_set(parents, PerturbationSettings(max_force=None), SoftWall(), seed=0)
    bound = 1.2 * largest_forces(label(parents, SoftWall())).max()  # just above the unperturbed structures
    chosen = PerturbationSettings(max_force=bound, max_redraws=1)
    made = make_pretraining_set(parents, chosen, SoftWall(), seed=0)
    report = made.report
    assert largest_forces(made.structures).max() <= bound
    assert report.structures + report.given_up == report.wanted == 15
    assert report.drawn == report.structures + sum(report.rejected.values())
    assert report.rejected["max_force"] >= 8
    attempts = np.array([a.info["attempt"] for a in made.structures])
    assert report.redrawn == (attempts > 0).sum() > 0
    assert report.weakened == (attempts > 1).sum() > 0
    assert report.weakened == sum(entry.weakened for entry in report.rounds)
    schedule = chosen.round_strengths()[0]
    for atoms in made.structures:
        expected = schedule[atoms.info["round"]] * 0.5 ** (atoms.info["attempt"] // 2)
        assert atoms.info["pull_strength"] == pytest.approx(expected)
    # a draw that passed the first time is the same with the filter and without
    passed = {a.info["structure_id"]: a for a in made.structures if a.info["attempt"] == 0}
    for atoms in free.structures:
        if atoms.info["structure_id"] in passed:
            assert (atoms.positions == passed[atoms.info["structure_id"]].positions).all()


def test_same_seed_same_set_in_any_order_and_number_of_processes(parents, monkeypatch):
    chosen = PerturbationSettings(n_aug=3, max_force=8.0)
    first = make_pretraining_set(parents, chosen, SoftWall(), seed=5, workers=1)
    monkeypatch.setattr(teacher_module, "PARALLEL_FROM", 0)
    same(first.structures, make_pretraining_set(parents, chosen, SoftWall(), seed=5, workers=2).structures)
    turned = make_pretraining_set(parents[::-1], chosen, SoftWall(), seed=5).structures
    by_name = {atoms.info["structure_id"]: atoms for atoms in turned}
    for atoms in first.structures:
        assert (by_name[atoms.info["structure_id"]].positions == atoms.positions).all()
    alone = make_pretraining_set(parents[1:2], chosen, SoftWall(), seed=5).structures
    assert all((by_name[atoms.info["structure_id"]].positions == atoms.positions).all() for atoms in alone)
    other = make_pretraining_set(parents, chosen, SoftWall(), seed=6)
    assert np.abs(other.structures[0].positions - first.structures[0].positions).max() > 1e-3


def test_online_epochs_differ_and_repeat(parents):
    chosen = PerturbationSettings(n_aug=2)
    online = OnlinePretrainingSet(parents, chosen, SoftWall(), seed=1, cutoff=4.0)
    same(online.epoch(0).structures, make_pretraining_set(parents, chosen, SoftWall(), seed=1).structures)
    same(online.epoch(7).structures, online.epoch(7).structures)
    assert np.abs(online.epoch(7).structures[0].positions - online.epoch(8).structures[0].positions).max() > 1e-3
    graphs = online(7)
    assert len(graphs) == 6
    assert graphs.cutoff == 4.0
    energies = [get_labels(atoms).energy for atoms in online.epoch(7).structures]
    assert graphs.batch().energy.tolist() == pytest.approx(energies, rel=1e-6)


def test_originals_come_last_when_asked_for(parents):
    made = make_pretraining_set(parents, PerturbationSettings(n_aug=2, originals=True), SoftWall())
    assert len(made.structures) == 9
    for atoms, original in zip(made.structures[6:], parents):
        assert (atoms.positions == original.positions).all()
        assert get_labels(atoms).energy is not None
        assert atoms.info["parent"] == original.info["structure_id"]
    assert made.report.originals == 3
    assert made.report.structures == 6


def test_without_teacher_only_distances_filter(parents):
    made = make_pretraining_set(parents, PerturbationSettings(pull=(2.0, 0.0), max_force=1e-9), None)
    assert len(made.structures) == 15
    assert all(atoms.calc is None for atoms in made.structures)
    assert set(made.report.rejected) <= {"min_distance"}


def test_parent_beyond_the_bound_is_given_up_and_named(parents, caplog):
    hard = Atoms("Si2", [[0, 0, 0], [0.4, 0, 0]], cell=[9] * 3, pbc=True, info={"structure_id": "hard"})
    strong = SoftWall(depth=100.0)
    made = make_pretraining_set([*parents[2:], hard], PerturbationSettings(max_force=100.0), strong)
    assert {a.info["parent"] for a in made.structures} == {"p2"}
    assert made.report.given_up == 5
    assert {entry.parent for entry in made.report.given_up_draws} == {"hard"}
    assert "hard" in caplog.text
    with pytest.raises(DataError, match="not one draw"):
        make_pretraining_set([hard], PerturbationSettings(max_force=100.0), strong)


def test_draws_that_never_pass_are_counted(parents, monkeypatch):
    monkeypatch.setattr(PerturbedParent, "too_close", lambda self, moves, strain: self.key == "p1")
    made = make_pretraining_set(parents, PerturbationSettings(n_aug=2, max_redraws=1, max_weakenings=2), None)
    assert made.report.rejected == {"min_distance": 12}  # 2 rounds of 6 attempts
    assert made.report.given_up == 2
    assert made.report.structures == 4
    assert made.report.drawn == 16


def test_calculator_as_teacher_and_structures_it_cannot_label(parents):
    water = Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [0, 0.96, 0]], info={"structure_id": "water"})
    made = make_pretraining_set([parents[0], water], PerturbationSettings(n_aug=2, max_force=None), Fragile)
    assert [a.info["parent"] for a in made.structures] == ["p0", "p0"]
    assert "no oxygen" in made.report.given_up_draws[0].reason


def test_bad_input(parents):
    with pytest.raises(DataError, match="no structures"):
        make_pretraining_set([], PerturbationSettings(), SoftWall())
    with pytest.raises(ConfigError, match="negative"):
        make_pretraining_set(parents, PerturbationSettings(), SoftWall(), seed=-1)


def test_distances_of_the_report():
    atoms = Atoms("OSi2", [[0, 0, 0], [1.6, 0, 0], [0, 0, 2.5]], cell=[3.9, 20, 20], pbc=True)
    found = closest_by_elements(atoms.numbers, *pairs_within(atoms, 4.0))
    assert found == pytest.approx({(8, 14): 1.6, (14, 14): np.hypot(1.6, 2.5), (8, 8): 3.9})
    closer = atoms.copy()
    closer.positions[1, 0] = 0.8
    report = smallest_distances([atoms], [closer, closer])
    pair = report.pairs["O-Si"]
    assert pair["original"].minimum == pytest.approx(1.6)
    assert pair["perturbed"].median == pytest.approx(0.8)
    assert sum(pair["perturbed"].counts) == 2
    edges = np.array(report.edges)
    bin_of = np.flatnonzero(pair["original"].counts)[0]
    assert edges[bin_of] <= 1.6 <= edges[bin_of + 1]
