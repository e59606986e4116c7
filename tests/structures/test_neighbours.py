"""Neighbour lists and graphs against brute force over images."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from mdl_physpre import build_graph
from mdl_physpre.errors import DataError
from mdl_physpre.potentials.base import edge_vectors
from mdl_physpre.structures import GraphDataset
from mdl_physpre.structures import graph as graph_module
from mdl_physpre.structures.graph import batch_by_edges
from mdl_physpre.structures.neighbours import neighbour_list


def brute_force(positions, cell, pbc, cutoff):
    """Every image that could matter, one by one; written apart from the library's own search."""
    volume = abs(np.linalg.det(cell))
    reach = []
    fractional = positions @ np.linalg.inv(cell)
    for axis in range(3):
        height = volume / np.linalg.norm(np.cross(cell[(axis + 1) % 3], cell[(axis + 2) % 3]))
        spread = np.ptp(fractional[:, axis])
        reach.append(range(-int(cutoff / height + spread) - 1, int(cutoff / height + spread) + 2) if pbc[axis] else [0])
    found = set()
    for a in reach[0]:
        for b in reach[1]:
            for c in reach[2]:
                difference = positions[None] + np.array([a, b, c]) @ cell - positions[:, None]
                distance = np.linalg.norm(difference, axis=-1)
                for i, j in zip(*np.nonzero(distance < cutoff)):
                    if not (i == j and a == b == c == 0):
                        found.add((i, j, a, b, c))
    return found


def random_cell(rng):
    while True:
        cell = rng.normal(size=(3, 3)) * rng.uniform(1.5, 6.0)
        volume = abs(np.linalg.det(cell))
        heights = [volume / np.linalg.norm(np.cross(cell[(k + 1) % 3], cell[(k + 2) % 3])) for k in range(3)]
        if min(heights) > 0.9:
            return cell


@pytest.mark.parametrize("pbc", [(0, 0, 0), (1, 0, 0), (1, 0, 1)])
def test_an_atom_that_has_flown_off_costs_neither_pairs_nor_memory(pbc):
    rng = np.random.default_rng(1)
    cell = np.array([[4.0, 0.5, 0], [1, 5, 1], [0, 1, 4]])
    near = rng.random((9, 3)) @ cell
    positions = np.concatenate([near[:4], [[3e6, -2e6, 1e6], [3e6, -2e6, 1e6 + 1.5]], near[4:]])
    free = np.linalg.svd(cell[np.array(pbc, bool)])[2][sum(pbc) :] if any(pbc) else np.eye(3)
    positions[4:6] = positions[4:6] @ free.T @ free  # far along what is not periodic
    positions[5] += [0, 0, 0.7]

    def pairs(some, names):
        i, j, shifts = neighbour_list(some, cell, np.array(pbc, bool), 3.5)
        return {(names[a], names[b], *map(int, s)) for a, b, s in zip(i, j, shifts)}

    apart = pairs(near, [0, 1, 2, 3, 6, 7, 8, 9, 10]) | pairs(positions[4:6], [4, 5])
    assert pairs(positions, range(11)) == apart
    assert (4, 5) in {pair[:2] for pair in apart}


@pytest.mark.parametrize("part", range(10))
def test_complete_on_random_cells(part):
    rng = np.random.default_rng(part)
    for _ in range(100):
        cell, pbc = random_cell(rng), rng.random(3) < 0.7
        n = int(rng.integers(1, 8))
        positions = rng.random((n, 3)) @ cell
        if rng.random() < 0.5:  # unwrapped
            positions += rng.integers(-2, 3, (n, 3)) @ cell
        cutoff = rng.uniform(1.5, 4.5)
        i, j, shifts = neighbour_list(positions, cell, pbc, cutoff)
        found = [(int(a), int(b), *map(int, s)) for a, b, s in zip(i, j, shifts)]
        assert len(set(found)) == len(found)
        assert set(found) == brute_force(positions, cell, pbc, cutoff)
        assert (np.diff(i) >= 0).all()


def test_primitive_copper_has_all_neighbours():
    graph = build_graph(bulk("Cu", a=3.61), cutoff=8.0)
    assert graph.edge_index.shape[1] == 176


def test_far_from_the_cell_costs_and_changes_nothing():
    atoms = bulk("NaCl", "rocksalt", 5.64)
    moved = atoms.copy()
    moved.positions[1] += 10_000 * atoms.cell[0] - 5_000 * atoms.cell[2]
    near, far = (edge_vectors(build_graph(a, 6.0)).norm(dim=1).sort().values for a in (atoms, moved))
    torch.testing.assert_close(near, far, rtol=0, atol=1e-8)


def test_molecules_single_atoms_and_no_edges():
    assert build_graph(Atoms("He"), 5.0).edge_index.shape == (2, 0)
    assert build_graph(Atoms("He", cell=[20, 20, 20], pbc=True), 5.0).edge_index.shape == (2, 0)
    water = build_graph(molecule("H2O"), 5.0)
    assert water.edge_index.shape == (2, 6) and float(water.cell.abs().sum()) == 0.0


@pytest.mark.parametrize("cell", [np.zeros((3, 3)), [[1, 0, 0], [2, 0, 0], [0, 0, 1]]])
def test_no_volume_is_an_error(cell):
    with pytest.raises(DataError, match="structure 1: cell"):
        build_graph([Atoms("He", cell=[9, 9, 9], pbc=True), Atoms("He", cell=cell, pbc=True)], 5.0)


def test_batches_are_the_single_graphs_one_after_another(tmp_path):
    structures = [bulk("Cu"), molecule("H2O"), bulk("Si"), Atoms("He"), bulk("NaCl", "rocksalt", 5.64)]
    data = GraphDataset(structures, 5.0, dtype=torch.float64, cache_dir=tmp_path)
    again = GraphDataset(structures, 5.0, dtype=torch.float64, cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    order = [4, 1, 0, 3]
    for built in (data, again):
        batch = built.batch(order)
        vectors, start_atom, start_edge = edge_vectors(batch), 0, 0
        for k, index in enumerate(order):
            single = build_graph(structures[index], 5.0)
            n, e = len(structures[index]), single.edge_index.shape[1]
            torch.testing.assert_close(vectors[start_edge : start_edge + e], edge_vectors(single))
            assert (batch.batch[start_atom : start_atom + n] == k).all()
            assert torch.equal(batch.edge_index[:, start_edge : start_edge + e] - start_atom, single.edge_index)
            start_atom, start_edge = start_atom + n, start_edge + e
        assert start_edge == batch.edge_index.shape[1]


def test_a_damaged_cache_is_rebuilt(tmp_path):
    structures = [bulk("Cu"), bulk("Si")]
    wanted = GraphDataset(structures, 5.0, cache_dir=tmp_path).n_edges
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    assert (GraphDataset(structures, 5.0, cache_dir=tmp_path).n_edges == wanted).all()


def test_parallel_equals_serial():
    rng = np.random.default_rng(0)
    structures = []
    for _ in range(120):
        atoms = bulk("NaCl", "rocksalt", 5.64, cubic=True).repeat((3, 3, 3))
        atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
        structures.append(atoms)
    one, two = (GraphDataset(structures, 3.5, workers=w).batch() for w in (1, 2))
    assert torch.equal(one.edge_index, two.edge_index) and torch.equal(one.cell_offsets, two.cell_offsets)


def test_batch_by_edges_keeps_order_and_bound():
    sizes = [5, 5, 5, 50, 1, 1]
    assert batch_by_edges(sizes, 10) == [[0, 1], [2], [3], [4, 5]]
    assert batch_by_edges(sizes, 10, order=[5, 3]) == [[5], [3]]


def test_edges_built_in_several_processes_are_the_same(monkeypatch):
    structures = [bulk("Si", cubic=True).repeat((1, 1, k)) for k in (1, 2, 1, 3)]
    one = GraphDataset(structures, 4.0, workers=1).batch()
    monkeypatch.setattr(graph_module, "PARALLEL_FROM", 0)
    two = GraphDataset(structures, 4.0, workers=2).batch()
    assert (one.edge_index == two.edge_index).all() and (one.cell_offsets == two.cell_offsets).all()
    flat = bulk("Si")
    flat.cell[2] = flat.cell[1]
    with pytest.raises(DataError, match="structure 4: cell .* no volume"):
        GraphDataset([*structures, flat], 4.0, workers=2)
