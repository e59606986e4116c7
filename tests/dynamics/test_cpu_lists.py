"""Neighbour lists with a skin against new lists, at every step, where atoms move and cells change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from mdl_physpre.analysis.overlap import minimum_distance
from mdl_physpre.dynamics.engine import pairs_cpu
from mdl_physpre.dynamics.engine.cpu_lists import SkinLists
from mdl_physpre.structures.neighbours import expected_neighbours, neighbour_list

CPU = torch.device("cpu")


def make_lists(atoms: list[Atoms], cutoff: float, changing: bool, **changes) -> SkinLists:
    cells = torch.from_numpy(np.array([a.cell[:] for a in atoms]))
    smallest = [minimum_distance(a.positions, a.cell[:], a.pbc) for a in atoms]
    options = {"skin": 0.5, "max_edges": 400, "max_neighbours": 5000} | changes
    return SkinLists(
        [a.numbers for a in atoms], cells, [a.pbc for a in atoms], [max(cutoff, d) for d in smallest],
        cutoff=cutoff, dtype=torch.float64, device=CPU, changing=changing, **options,
    )  # fmt: skip


def edges_of(atoms: Atoms, cutoff: float) -> set[tuple]:
    i, j, shifts = neighbour_list(atoms.positions, atoms.cell[:], atoms.pbc, cutoff)
    return {(int(a), int(b), *map(int, s)) for a, b, s in zip(i, j, shifts)}


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("kind", ["fixed", "scaled", "strained"])
def test_graphs_and_smallest_distances_are_those_of_new_lists(kind: str, native: bool, monkeypatch) -> None:
    if not native:
        monkeypatch.setattr(pairs_cpu.CODE, "dtypes", {})
    elif pairs_cpu.CODE.library("double") is None:
        pytest.skip("there is no C compiler here")
    rng = np.random.default_rng(3)
    atoms = [
        bulk("Cu", "fcc", a=3.5).repeat((2, 2, 1)),
        bulk("NaCl", "rocksalt", a=5.2),
        Atoms("Si3", rng.random((3, 3)) * 5, cell=[[6, 0, 0], [2, 5, 0], [1, 2, 6]], pbc=True),
        bulk("Cu", "hcp", a=2.5).repeat((2, 1, 1)),
    ]
    cutoff = 3.9
    lists = make_lists(atoms, cutoff, kind != "fixed")
    positions = np.concatenate([a.positions for a in atoms])
    assert lists.build_all(torch.from_numpy(positions)) == {}
    steps, built = 150, lists.rebuilds
    closest = np.array([minimum_distance(a.positions, a.cell[:], a.pbc) for a in atoms])
    for step in range(steps):
        for k, a in enumerate(atoms):
            a.positions += rng.normal(0, 0.02, a.positions.shape)
            if kind != "fixed":
                change = np.eye(3) * (1 + 0.004 * np.sin(step / 7 + k))
                if kind == "strained":
                    change = change + rng.normal(0, 0.003, (3, 3))
                a.set_cell(a.cell[:] @ change, scale_atoms=False)
                a.positions = a.positions @ change
        positions = torch.from_numpy(np.concatenate([a.positions for a in atoms]))
        assert lists.update(positions, torch.from_numpy(np.array([a.cell[:] for a in atoms]))) == {}
        found = lists.minimum_distances(positions).numpy()
        exact = np.array([minimum_distance(a.positions, a.cell[:], a.pbc) for a in atoms])
        # what was never closer than at the start need not be exact
        np.testing.assert_allclose(np.minimum(found, closest), np.minimum(exact, closest), rtol=1e-12)
        for chunk in lists.chunks:
            graph = lists.graph(chunk, positions)
            first = 0
            for k in range(chunk.first, chunk.last):
                last = first + len(atoms[k])
                mine = (graph.edge_index[0] >= first) & (graph.edge_index[0] < last)
                i, j = (graph.edge_index[:, mine] - first).tolist()
                offsets = graph.cell_offsets[mine].long().tolist()
                assert set(zip(i, j, *zip(*offsets, strict=True), strict=True)) == edges_of(atoms[k], cutoff)
                np.testing.assert_allclose(graph.cell[k - chunk.first].numpy(), atoms[k].cell[:], rtol=1e-12)
                first = last
    assert 2 * len(atoms) < lists.rebuilds - built < 0.7 * steps * len(atoms), "lists must be used again"


def test_a_scaled_cell_alone_leads_to_a_new_list_in_time() -> None:
    """Atoms that move with the cell have not moved at all; only the strain says that pairs come within the cutoff."""
    atoms = bulk("Cu", "fcc", a=3.6).repeat((2, 2, 2))
    lists = make_lists([atoms], 4.2, True, skin=0.4)
    lists.build_all(torch.from_numpy(atoms.positions))
    for _ in range(60):
        atoms.set_cell(atoms.cell[:] * 0.995, scale_atoms=True)
        positions = torch.from_numpy(atoms.positions)
        lists.update(positions, torch.from_numpy(atoms.cell[:][None].copy()))
        graph = lists.graph(lists.chunks[0], positions)
        assert graph.edge_index.shape[1] == len(edges_of(atoms, 4.2))
    assert 3 < lists.rebuilds < 30


def test_structures_that_stay_keep_their_lists() -> None:
    atoms = [bulk("Cu", "fcc", a=3.6).repeat((2, 2, 1)) for _ in range(3)]
    lists = make_lists(atoms, 4.0, True)
    positions = torch.from_numpy(np.concatenate([a.positions for a in atoms]))
    lists.build_all(positions)
    kept = [id(one) for one in lists.lists]
    cells = lists.cells.clone()
    cells[1] *= 0.93
    positions[4:8] *= 0.93
    lists.update(positions, cells)
    assert [id(one) == before for one, before in zip(lists.lists, kept, strict=True)] == [True, False, True]


def test_collapse_is_seen_before_the_search() -> None:
    assert expected_neighbours(3, np.eye(3) * 2, [True] * 3, 6.0) == pytest.approx(3 * 4 / 3 * np.pi * 216 / 8)
    assert expected_neighbours(3, np.eye(3) * 0.1, [True, True, False], 6.0) == pytest.approx(np.pi * 36 / 0.01)
    assert expected_neighbours(3, np.eye(3) * 0.1, [False, True, False], 6.0) == pytest.approx(120)
    assert expected_neighbours(3, np.zeros((3, 3)), [False] * 3, 6.0) == 0
    assert expected_neighbours(3, np.ones((3, 3)), [True] * 3, 6.0) == np.inf
    thin = Atoms("H2", [[0, 0, 0], [0, 0, 1]], cell=[0.01, 0.01, 0], pbc=(True, True, False))
    lists = SkinLists(
        [thin.numbers], torch.from_numpy(thin.cell[:][None].copy()), [thin.pbc], [4.0], cutoff=4.0, skin=1.0,
        dtype=torch.float64, device=CPU, max_edges=100, max_neighbours=10_000,
    )  # fmt: skip
    assert "neighbours within 5.00 Å" in lists.build_all(torch.from_numpy(thin.positions))[0]
