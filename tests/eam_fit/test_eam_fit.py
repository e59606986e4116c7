"""The fit of the embedded-atom potential: its loss, its routes, what it says, and what it refuses."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms

from mdl_physpre.eam_fit.fit import EAMFit, fit_eam, start_energies
from mdl_physpre.eam_fit.objective import FitObjective
from mdl_physpre.eam_fit.report import FittedPair, pair_table
from mdl_physpre.eam_fit.routes import (
    BestState,
    Scaling,
    batch_loss,
    energy_shift,
    fit_reference,
    parameters_of,
    set_parameters,
)
from mdl_physpre.eam_fit.settings import EAMFitSettings
from mdl_physpre.eam_fit.wall import WallPrior
from mdl_physpre.errors import ConfigError, DataError, FitError
from mdl_physpre.potentials.checkpoints.load import load_potential
from mdl_physpre.potentials.checkpoints.own import save_potential
from mdl_physpre.potentials.eam.potential import EAMInteraction, pair_curve
from mdl_physpre.potentials.eam.radial import radial_functions
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.potentials.zbl import nuclear_repulsion
from mdl_physpre.structures.graph import GraphDataset, build_graph
from mdl_physpre.structures.labels import set_labels

CUTOFF = 4.5
WEIGHTS = (0.01, 50.0, 50.0)


def fitted(train, val=None, elements=None, seed=0, cutoff=CUTOFF, **settings) -> EAMFit:
    chosen = EAMFitSettings(cutoff=cutoff, **settings)
    return fit_eam(train, val, chosen, elements=elements, seed=seed, progress=False)


def random_structures(n: int, seed: int = 0, symbols=("Si", "O"), size=(3, 7)) -> list[Atoms]:
    generator = np.random.default_rng(seed)
    out = []
    while len(out) < n:
        count = int(generator.integers(*size))
        side = (count * 14.0) ** (1 / 3)
        cell = side * np.eye(3) + generator.uniform(-0.3, 0.3, (3, 3))
        atoms = Atoms(generator.choice(symbols, count), cell=cell, pbc=True)
        atoms.set_scaled_positions(generator.uniform(0, 1, (count, 3)))
        d = atoms.get_all_distances(mic=True) + 9 * np.eye(count)
        if d.min() > 1.5:
            out.append(atoms)
    return out


def teacher(symbols=("O", "Si"), seed: int = 3) -> EAMInteraction:
    potential = EAMInteraction(symbols, cutoff=CUTOFF, n_basis=2)
    generator = np.random.default_rng(seed)
    with torch.no_grad():
        for name in ("D", "alpha", "r_e", "rho0"):
            p = getattr(potential, name)
            p.mul_(torch.from_numpy(generator.uniform(0.8, 1.2, p.shape)))
        potential.E0.copy_(torch.tensor([-5.0, -3.0])[: len(symbols)])
    return potential


def labelled(structures: list[Atoms], potential: EAMInteraction) -> list[Atoms]:
    out = []
    for atoms in structures:
        found = evaluate(potential, build_graph(atoms, potential.cutoff))
        atoms = atoms.copy()
        out.append(set_labels(atoms, float(found.energies[0]), found.forces.numpy(), found.stress[0].numpy()))
    return out


@pytest.fixture(scope="module")
def data() -> list[Atoms]:
    return labelled(random_structures(24), teacher())


def with_gaps(structures: list[Atoms]) -> list[Atoms]:
    """Copies of which some lack energy, forces or stress."""
    out = []
    for k, atoms in enumerate(structures):
        results = atoms.calc.results
        keep = [("energy", "forces", "stress"), ("forces",), ("energy",), ("energy", "stress")][k % 4]
        out.append(set_labels(atoms.copy(), **{name: results[name] for name in keep}))
    return out


def perturbed(potential: EAMInteraction, seed: int = 1) -> EAMInteraction:
    generator = np.random.default_rng(seed)
    with torch.no_grad():
        for p in potential.parameters():
            p.mul_(torch.from_numpy(generator.uniform(0.8, 1.2, p.shape)))
    return potential


@pytest.mark.parametrize("repulsion", [{}, {"short_range": "zbl", "short_range_radii": {"O-O": 1.9}}])
def test_objective_is_the_loss_of_evaluate_and_masks_what_is_missing(data, repulsion):
    dataset = GraphDataset(with_gaps(data), CUTOFF, dtype=torch.float64)
    potential = perturbed(EAMInteraction(["O", "Si"], CUTOFF, **repulsion))
    objective = FitObjective(dataset, potential, WEIGHTS)
    found = objective(parameters_of(potential))
    from_elsewhere = FitObjective(dataset, copy.deepcopy(potential).to("meta"), WEIGHTS)  # it works on the CPU
    assert from_elsewhere(parameters_of(potential)).value == found.value

    graph = dataset.batch()
    predicted = evaluate(potential, graph, create_graph=True)
    expected = 0.0
    values_of = {"energy": predicted.energies, "forces": predicted.forces, "stress": predicted.stress}
    for weight, (name, values) in zip(WEIGHTS, values_of.items()):
        error = (values - graph[name]).abs()
        error = error[~graph[name].isnan()]
        assert 0 < error.numel() < graph[name].numel()
        expected = expected + weight * error.mean()
        assert found.errors[name] == pytest.approx(float(error.mean().detach()), rel=1e-4)
    assert found.value == pytest.approx(float(expected.detach()), rel=1e-4)

    expected.backward()
    for name, gradient in found.gradient.items():
        wanted = (potential.b if name == "B" else getattr(potential, name)).grad
        torch.testing.assert_close(gradient, wanted, rtol=2e-3, atol=2e-3 * float(wanted.abs().max()))


def test_batch_loss_of_all_structures_is_the_objective(data):
    dataset = GraphDataset(with_gaps(data), CUTOFF, dtype=torch.float64)
    potential = perturbed(EAMInteraction(["O", "Si"], CUTOFF))
    loss = batch_loss(potential, dataset, np.arange(len(dataset)), WEIGHTS)
    expected = FitObjective(dataset, potential, WEIGHTS)(parameters_of(potential), gradient=False).value
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)


def test_smoothed_loss_has_the_gradient_of_its_value(data):
    potential = perturbed(EAMInteraction(["O", "Si"], CUTOFF))
    objective = FitObjective(GraphDataset(data, CUTOFF, dtype=torch.float64), potential, WEIGHTS)
    smoothing = {"energy": 0.5, "forces": 0.1, "stress": 0.01}
    parameters = parameters_of(potential)
    gradient = objective(parameters, smoothing).gradient
    for name in ("D", "alpha", "r_e", "B", "rho0", "beta"):
        values = []
        for step in (1e-3, -1e-3):
            moved = {n: p.clone() for n, p in parameters.items()}
            moved[name].view(-1)[0] += step
            values.append(objective(moved, smoothing, gradient=False).value)
        assert (values[0] - values[1]) / 2e-3 == pytest.approx(float(gradient[name].view(-1)[0]), rel=5e-3, abs=2e-2)


def test_scaling_and_its_inverse_agree():
    potential = perturbed(EAMInteraction(["O", "Si"], CUTOFF, n_basis=3), seed=4)
    start = parameters_of(potential)
    scaling = Scaling(potential, start)
    again = scaling.parameters(torch.tensor(scaling.vector(start)))
    clipped = {"beta": (0.3, 4.0), "D": (0.05, 20.0), "alpha": (0.8, 4.0)}
    for name, values in start.items():
        low, high = clipped.get(name, (-np.inf, np.inf))
        if name != "A":
            torch.testing.assert_close(again[name], values.clamp(low, high))


def test_fast_route_recovers_a_known_potential(data):
    fit = fitted(data[:20], data[20:], n_basis=2, epochs=300)
    before = fit.history[0]["val_loss"]
    after = min(row["val_loss"] for row in fit.history)
    assert after < before / 200
    forces = np.concatenate([a.get_forces() for a in data[20:]])
    assert fit.errors["val"].forces_mae < 2e-3 * np.abs(forces).mean()
    assert fit.errors["val"].energy_mae_mev_per_atom < 10
    known = teacher()
    r = np.linspace(1.6, 3.0, 20)
    for pair in (("O", "Si"), ("O", "O"), ("Si", "Si")):  # where data lie, the curves agree up to a pair of constants
        a, b = (pair_curve(p, *pair, r).detach() for p in (known, fit.potential))
        assert float(((a - a[-1]) - (b - b[-1])).abs().max()) < 0.3 * float((a - a[-1]).abs().max())


@pytest.mark.parametrize("route", ["fast", "reference"])
def test_a_fit_with_a_repulsion_makes_the_sum_fit(route, tmp_path):
    """Labels of a potential with a repulsion that reaches into the data: the fit knows of it."""
    repulsion = {"short_range": "zbl", "short_range_radii": {"O-Si": 2.4, "O-O": 2.4, "Si-Si": 2.32}}
    known = EAMInteraction(["O", "Si"], cutoff=CUTOFF, n_basis=2, **repulsion)
    known.load_state_dict(teacher().state_dict())
    structures = labelled(random_structures(24), known)
    settings = {"n_basis": 2, "epochs": 120, "route": route, **repulsion}
    fit = fitted(structures[:20], structures[20:], **settings)
    losses = [row["val_loss"] for row in fit.history]
    assert min(losses) < losses[0] / (50 if route == "fast" else 2)
    assert fit.errors["val"].total == pytest.approx(min(losses), rel=1e-3)
    assert "repulsion of the nuclei" in fit.text and "O-Si 2.4, O-O 2.4, Si-Si 2.32" in fit.text
    loaded = load_potential(save_potential(tmp_path / "eam.pt", fit.potential))
    assert loaded.repulsion.radii == repulsion["short_range_radii"]
    for row, (zi, zj) in zip(fit.table, fit.potential.pairs):
        close = pair_curve(loaded, zi, zj, [0.5, 0.005]).detach()
        assert row.wall_eV == pytest.approx(float(close[0]))
        assert float(close[1]) > 0.9 * float(nuclear_repulsion(zi, zj, torch.tensor(0.005).double()))


def test_fast_route_is_no_worse_than_the_reference_route(data):
    loss = {}
    for route in ("fast", "reference"):
        fit = fitted(data[:10], data[10:], n_basis=3, route=route, epochs=200)
        loss[route] = fit.errors["val"].total
        assert fit.history[-1]["val_loss"] < fit.history[0]["val_loss"]
    assert loss["fast"] <= loss["reference"]


def test_reference_start_stays_one_exponential(data):
    potential = EAMInteraction(["O", "Si"], CUTOFF, init="reference")
    dataset = GraphDataset(data[:8], CUTOFF)
    best = BestState(FitObjective(dataset, potential, WEIGHTS))
    fit_reference(potential, dataset, best, range(1, 6), EAMFitSettings(), seed=0)
    for p in (potential.A.detach(), potential.beta.detach()):
        assert float((p - 1.0).abs().max()) > 1e-3  # they have moved,
        assert float((p - p[:, :1]).abs().max()) < 1e-9  # all ten together
    assert len(best.history) == 5
    spread = EAMInteraction(["O", "Si"], CUTOFF)
    assert float(spread.beta.detach().std(dim=1).min()) > 0.5


def test_reference_route_repeats_with_its_seed(data):
    def run(seed):
        fit = fitted(data[:8], route="reference", epochs=2, seed=seed)
        return fit.potential.D.detach()

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_best_state_is_that_of_lowest_validation_loss(data):
    fit = fitted(data[:20], data[20:], n_basis=2, epochs=25)
    scores = [row["val_loss"] + row["wall"] for row in fit.history]
    row = fit.history[int(np.argmin(scores))]
    assert fit.errors["val"].forces_mae == pytest.approx(row["val_forces"], rel=1e-3)
    assert fit.errors["val"].total == pytest.approx(row["val_loss"], rel=1e-3)
    assert [r["epoch"] for r in fit.history] == sorted(r["epoch"] for r in fit.history)


def test_start_energies_leave_nothing_to_composition(data):
    potential = EAMInteraction(["O", "Si"], CUTOFF)
    dataset = GraphDataset(data, CUTOFF, dtype=torch.float64)
    start_energies(potential, dataset)
    graph = dataset.batch()
    left = (graph.energy - evaluate(potential, graph, forces=False, stress=False).energies).numpy()
    counts = np.array([[np.sum(a.numbers == z) for z in potential.elements] for a in data])
    weights = 1.0 / counts.sum(1) ** 2
    assert np.abs(counts.T @ (weights * left)).max() < 1e-8 * np.abs(counts.T @ (weights * np.abs(left))).max() + 1e-9


def test_energy_shift_is_the_least_absolute_deviation():
    generator = np.random.default_rng(0)
    composition = torch.from_numpy(generator.integers(1, 9, (41, 2)).astype(float))
    left = composition @ torch.tensor([2.0, -3.0], dtype=torch.float64) + torch.from_numpy(generator.standard_t(2, 41))
    left[3] = torch.nan
    known = left.isfinite()

    def deviation(shift):
        return float((left - composition @ shift)[known].abs().sum())

    found = energy_shift(composition, left)
    for step in np.concatenate([np.eye(2), -np.eye(2), [[1, -1], [-1, 1]]]) * 0.02:
        assert deviation(found) <= deviation(found + torch.from_numpy(step)) + 1e-3
    same = torch.ones((5, 2), dtype=torch.float64)  # one composition: the solution of least norm
    shift = energy_shift(same, torch.full((5,), 4.0, dtype=torch.float64))
    assert shift.tolist() == pytest.approx([2.0, 2.0])


def test_pairs_that_never_meet_are_named_and_keep_their_start():
    structures = random_structures(4, symbols=("Si",)) + random_structures(4, seed=1, symbols=("O",))
    data = labelled(structures, teacher())
    for route in ("fast", "reference"):
        fit = fitted(data, elements=["Si", "O", "P"], n_basis=2, route=route, epochs=3)
        start = EAMInteraction(["Si", "O", "P"], CUTOFF, n_basis=2)
        for name in ("A", "beta", "D", "alpha", "r_e"):
            found, expected = getattr(fit.potential, name).detach(), getattr(start, name).detach()
            for p, pair in enumerate(fit.potential.pair_names()):
                assert torch.equal(found[p], expected[p]) == (pair not in ("Si-Si", "O-O"))
        assert "Si-O never meets within 4.5 Å" in fit.text
        assert "no training structure holds P" in fit.text
        assert all(FittedPair.model_validate(row.plain()) == row for row in fit.table)
        assert "wall_at_0.5_A_eV" in fit.table[0].plain()
        rows = {row.pair: row.closest_A for row in fit.table}
        assert rows["Si-O"] is None
        shortest = min((a.get_all_distances(mic=True) + 9 * np.eye(len(a))).min() for a in structures[:4])
        assert rows["Si-Si"] == pytest.approx(shortest, abs=1.1e-3)
        json.dumps([[row.plain() for row in fit.table], fit.errors["train"].plain(), fit.history])


def test_wall_that_falls_is_seen():
    potential = EAMInteraction(["O", "Si"], CUTOFF)
    with torch.no_grad():
        potential.rho0.fill_(1e4)  # never enough density: atoms want to crowd
    assert not any(row.rises for row in pair_table(potential, [1.0] * 3))
    assert all(row.rises for row in pair_table(EAMInteraction(["O", "Si"], CUTOFF), [1.0] * 3))


def test_fitted_walls_rise_for_every_pair(data):
    fit = fitted(data, epochs=60)
    assert all(row.rises for row in fit.table)
    for row, (zi, zj) in zip(fit.table, fit.potential.pairs):
        curve = pair_curve(fit.potential, zi, zj, np.linspace(0.3, 0.8, 20)).detach()
        assert bool((curve.diff() < 0).all())
        near = 0.2 * float(EAMInteraction([zi] if zi == zj else [zi, zj]).r_e[0].detach())
        nuclear = float(nuclear_repulsion(zi, zj, torch.tensor(near)))
        assert nuclear / 8 < float(pair_curve(fit.potential, zi, zj, near).detach()) < 8 * nuclear
        assert row.wall_eV > 10 * (row.well_depth_eV or 0.0)


def test_wall_prior_pulls_a_falling_curve_up_and_leaves_a_good_one_alone(data):
    potential = EAMInteraction(["O", "Si"], CUTOFF)
    objective = FitObjective(GraphDataset(data, CUTOFF), potential, WEIGHTS)
    atoms = torch.tensor([sum(int((a.numbers == z).sum()) for a in data) for z in potential.elements])
    wall = WallPrior(potential, objective.pair, objective.r, objective.distance_counts(), atoms)
    parameters = parameters_of(potential)
    bad = {**parameters, "rho0": parameters["rho0"] * 100}
    assert float(wall(bad)) > 10 * float(wall(parameters)) + 1.0
    leaf = bad["rho0"].clone().requires_grad_(True)
    wall({**bad, "rho0": leaf}).backward()
    assert bool((leaf.grad > 0).all())
    # the mean density behind it is that of the potential itself
    graph = GraphDataset(data, CUTOFF, dtype=torch.float64).batch()
    with torch.no_grad():
        potential.D.zero_()
        potential.rho0.zero_()
        potential.E0.zero_()
        rho = potential.atomic_energies(graph).sqrt()
    expected = [float(rho[graph.z == z].mean()) for z in potential.elements]
    pairs = potential.pair_parameters(torch.float64)
    found = wall.received @ radial_functions(wall.histogram_r, wall.histogram_pair, pairs, CUTOFF)[2]
    assert found.tolist() == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("route", ["fast", "reference"])
def test_one_structure_of_one_atom(route):
    lone = Atoms("P", cell=np.eye(3) * 30, pbc=True)
    set_labels(lone, energy=-3.0, forces=np.zeros((1, 3)), stress=np.zeros((3, 3)))
    fit = fitted([lone], route=route, epochs=3)
    assert "P-P never meets" in fit.text
    assert fit.errors["val"] is None
    free = set_labels(Atoms("P"), energy=-3.0, forces=np.zeros((1, 3)))
    fit = fitted([free, free], route=route, epochs=3)
    assert fit.errors["train"].stress_mae is None
    energy = evaluate(fit.potential, build_graph(Atoms("P"), CUTOFF)).energies
    assert float(energy) == pytest.approx(-3.0, abs=0.05)


def test_energies_alone_and_forces_alone(data):
    for name, other in (("energy", "forces"), ("forces", "energy")):
        part = [set_labels(a.copy(), **{name: a.calc.results[name]}) for a in data[:6]]
        fit = fitted(part, n_basis=2, epochs=20)
        losses = [row["train_loss"] for row in fit.history]
        assert min(losses) < losses[0]
        notes = fit.text.split("Take note:")[1]
        assert f"carries {other}" in notes and "stress" not in notes  # stresses are often not there


def test_validation_set_without_labels_does_not_choose_the_start(data):
    bare = [a.copy() for a in data[20:]]
    for a in bare:
        a.calc = None
    fit = fitted(data[:6], bare, n_basis=2, epochs=15)
    assert fit.errors["val"] is None
    assert fit.errors["train"].total < 0.5 * fit.history[0]["train_loss"]
    assert "the training set chose the best state" in fit.text


def test_divergence_names_epoch_and_parameter(data):
    with pytest.raises(FitError, match=r"epoch \d+.*(parameter|D|B|A)"):
        fitted(data[:4], route="reference", epochs=20, lr=1e6)
    potential = EAMInteraction(["O", "Si"], CUTOFF)
    best = BestState(FitObjective(GraphDataset(data[:2], CUTOFF), potential, WEIGHTS))
    parameters = parameters_of(potential)
    parameters["alpha"][1] = float("nan")
    with pytest.raises(FitError, match="epoch 7: parameter alpha"):
        best.add(7, 1.0, parameters)


def test_bad_input_is_refused(data):
    with pytest.raises(ConfigError, match="'fast' or 'reference'"):
        fitted(data, route="quick")
    with pytest.raises(FitError, match="no training structures"):
        fitted([])
    bare = [Atoms("Si", cell=np.eye(3) * 5, pbc=True)]
    with pytest.raises(FitError, match="none of the 1 training structures"):
        fitted(bare)
    with pytest.raises(FitError, match="label that the loss weighs"):
        fitted([set_labels(bare[0].copy(), energy=1.0)], weight_energy=0.0)
    with pytest.raises(DataError, match=r"training structure .*holds Si.*potential is for O"):
        fitted(data, elements=["O"])


def test_parameters_are_written_as_they_are_read():
    potential = perturbed(EAMInteraction(["O", "Si"], CUTOFF))
    other = EAMInteraction(["O", "Si"], CUTOFF)
    set_parameters(other, parameters_of(potential))
    for a, b in zip(potential.parameters(), other.parameters()):
        assert torch.equal(a, b)


def test_text_says_what_it_is(data):
    fit = fitted(data[:20], data[20:], n_basis=2, epochs=10)
    for words in ("O-Si", "wall at 0.5 Å", "well depth", "E0, eV", "meV/atom", "eV/Å³", "weighted total", "validation"):
        assert words in fit.text
    assert fit.seconds > 0


@pytest.mark.skipif("PHYSPRE_DATA" not in os.environ, reason="PHYSPRE_DATA does not name the folder of real data")
def test_real_silica_fits_better_than_its_start():
    import gzip
    import io

    from ase.io import read

    path = Path(os.environ["PHYSPRE_DATA"]) / "silica" / "si_zeo_22_sample.extxyz.gz"
    with gzip.open(path, "rt") as file:
        structures = [a for a in read(io.StringIO(file.read()), ":", format="extxyz") if len(a) <= 30][:60]
    fit = fitted(structures[::2], structures[1::2], cutoff=8.0, epochs=60)
    assert fit.errors["val"].forces_mae < 0.6
    assert fit.errors["val"].stress_mae is None
    assert all(row.rises for row in fit.table)
