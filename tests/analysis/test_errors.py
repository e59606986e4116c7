"""Errors against numbers computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.units import GPa

from mdl_physpre.analysis.errors import format_errors, null_model_errors, prediction_errors
from mdl_physpre.errors import DataError
from mdl_physpre.potentials.base import AtomicPotential, edge_vectors
from mdl_physpre.potentials.evaluation import evaluate
from mdl_physpre.structures.graph import GraphDataset, build_graph
from mdl_physpre.structures.labels import set_labels


class Springs(AtomicPotential):
    """E_i = −1 eV + Σ_j ¼ k (r_ij − 2)² over neighbours within 3 Å."""

    def __init__(self):
        super().__init__()
        self.cutoff = 3.0
        self.k = torch.nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def atomic_energies(self, graph):
        r = edge_vectors(graph).norm(dim=1)
        start = torch.full((len(graph.z),), -1.0, dtype=r.dtype, device=r.device)
        return start.index_add(0, graph.edge_index[0], 0.25 * self.k * (r - 2) ** 2)


def chains():
    """Five periodic structures of one to three atoms whose labels are off by known amounts."""
    rng = np.random.default_rng(0)
    made, errors = [], []
    for n in (1, 2, 3, 2, 1):
        positions = np.array([[0, 0, 0], [2.1, 0, 0], [4.5, 0.2, 0]])[:n]
        atoms = Atoms("Si" * n, positions=positions, cell=[6.5, 2.4, 7.0], pbc=True, info={"phase": f"n{n}"})
        result = evaluate(Springs(), build_graph(atoms, 3.0))
        error = rng.normal(size=()), rng.normal(size=(n, 3)), rng.normal(size=(3, 3))
        error = error[0], error[1], (error[2] + error[2].T) * 0.01
        set_labels(
            atoms,
            energy=float(result.energies) + error[0],
            forces=result.forces.numpy() + error[1],
            stress=result.stress[0].numpy() + error[2],
        )
        made.append(atoms)
        errors.append(error)
    return made, errors


def test_all_figures():
    structures, errors = chains()
    found = prediction_errors(Springs(), structures, max_edges=5)
    n = np.array([1, 2, 3, 2, 1])
    energy = np.array([e[0] for e in errors])
    forces = np.concatenate([e[1].ravel() for e in errors])
    stress = np.concatenate([e[2].ravel() for e in errors])
    expected = {
        "energy_mae": np.abs(energy).mean(),
        "energy_rmse": np.sqrt((energy**2).mean()),
        "energy_mae_mev_per_atom": 1000 * np.abs(energy / n).mean(),
        "energy_rmse_mev_per_atom": 1000 * np.sqrt(((energy / n) ** 2).mean()),
        "forces_mae": np.abs(forces).mean(),
        "forces_rmse": np.sqrt((forces**2).mean()),
        "stress_mae": np.abs(stress).mean(),
        "stress_rmse": np.sqrt((stress**2).mean()),
        "stress_mae_gpa": np.abs(stress).mean() * 160.21766208,
        "total": 0.01 * np.abs(energy).mean() + 50 * np.abs(forces).mean() + 50 * np.abs(stress).mean(),
    }
    assert {k: getattr(found, k) for k in expected} == pytest.approx(expected, rel=1e-7)
    assert 1 / GPa == pytest.approx(160.21766208)
    assert found.n_structures == 5
    assert found.n_atoms == 9
    assert found.counts == {"energy": 5, "forces": 5, "stress": 5}
    assert found.total_of == ("energy", "forces", "stress")


def test_batches_and_data_set_make_no_difference():
    structures, _ = chains()
    together = prediction_errors(Springs(), structures)
    alone = prediction_errors(Springs(), GraphDataset(structures, 3.0, dtype=torch.float64), max_edges=1)
    floats = [{k: v for k, v in found.model_dump().items() if isinstance(v, float)} for found in (together, alone)]
    assert floats[0] == pytest.approx(floats[1], rel=1e-10)


def test_missing_labels_are_left_out_and_never_zero():
    structures, errors = chains()
    for k, atoms in enumerate(structures):
        del atoms.calc.results["stress"]
        if k in (1, 4):
            del atoms.calc.results["energy"]
        if k == 2:
            del atoms.calc.results["forces"]
    found = prediction_errors(Springs(), structures)
    assert found.energy_mae == pytest.approx(np.mean([abs(errors[k][0]) for k in (0, 2, 3)]))
    forces = np.concatenate([errors[k][1].ravel() for k in (0, 1, 3, 4)])
    assert found.forces_mae == pytest.approx(np.abs(forces).mean())
    assert found.counts == {"energy": 3, "forces": 4, "stress": 0}
    assert found.stress_mae is found.stress_rmse is found.stress_mae_gpa is None
    assert found.total == pytest.approx(0.01 * found.energy_mae + 50 * found.forces_mae)
    assert found.total_of == ("energy", "forces")
    text = format_errors({"plain": found})
    row = next(line for line in text.splitlines() if line.startswith("plain"))
    assert row.split()[4] == "–"
    assert row.split()[-1] == "–"
    assert "plain: no label for stress; the total is without" in text


def test_groups():
    structures, _ = chains()
    found = prediction_errors(Springs(), structures, by="phase")
    assert list(found.groups) == ["n1", "n2", "n3"]
    alone = prediction_errors(Springs(), [structures[1], structures[3]])
    for key in ("energy_mae", "forces_rmse", "stress_mae", "total"):
        assert getattr(found.groups["n2"], key) == pytest.approx(getattr(alone, key))
    assert [line.split()[0] for line in format_errors({"a": found}).splitlines()[1:5]] == ["a", "n1", "n2", "n3"]


def test_table_lines_up():
    structures, _ = chains()
    found = prediction_errors(Springs(), structures)
    lines = format_errors({"baseline": found, "pretrain": found}).splitlines()
    assert len({len(line) for line in lines[:3]}) == 1
    assert lines[3] == "total = 0.01·E + 50·F + 50·S"


def test_potential_is_left_as_it_was():
    potential = Springs().train()
    prediction_errors(potential, chains()[0])
    assert potential.training
    assert potential.k.grad is None


def test_nothing_to_compare_with():
    structures, _ = chains()
    for atoms in structures:
        atoms.calc = None
    with pytest.raises(DataError, match="none of the 5 structures"):
        prediction_errors(Springs(), structures)
    with pytest.raises(DataError, match="no structures"):
        prediction_errors(Springs(), [])


def test_the_null_model_by_hand():
    """No forces: the error is the mean absolute label; energies of composition: what is left of them."""
    structures = [
        set_labels(
            Atoms("SiO2", np.zeros((3, 3)), cell=[4, 4, 4], pbc=True), -9.0, np.full((3, 3), 0.5), np.full((3, 3), 0.01)
        ),
        set_labels(Atoms("O", np.zeros((1, 3))), -4.0, np.full((1, 3), -1.5)),
    ]
    found = null_model_errors(structures, {"Si": -2.0, "O": -3.0})
    assert found.energy_mae == pytest.approx((1.0 + 1.0) / 2)
    assert found.energy_mae_mev_per_atom == pytest.approx(1000 * (1 / 3 + 1) / 2)
    assert found.forces_mae == pytest.approx((9 * 0.5 + 3 * 1.5) / 12)
    assert found.stress_mae == pytest.approx(0.01) and found.counts == {"energy": 2, "forces": 2, "stress": 1}
    assert null_model_errors(structures).energy_mae is None
