"""Neighbour lists on a device, built on the CPU here: both searches against images counted one by one, and the lists
against new ones at every step."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from mdl_physpre.analysis.overlap import minimum_distance
from mdl_physpre.dynamics.engine import device_memory, device_search
from mdl_physpre.dynamics.engine.device_lists import DeviceLists
from mdl_physpre.dynamics.engine.device_memory import ONE_CHUNK, edges_that_fit
from mdl_physpre.dynamics.running.windows import Unread
from mdl_physpre.structures.neighbours import complete_cell, neighbour_list
from tests.helpers.pair_potentials import Morse, RaisesAtOnce
from tests.helpers.small_structures import crystals

CPU = torch.device("cpu")
WAYS = ["warp", "tensors"]


@pytest.fixture(params=WAYS)
def way(request, monkeypatch) -> str:
    if request.param == "warp" and not device_search.warp_is_there():
        pytest.skip("nvalchemi-toolkit-ops is not installed here")
    monkeypatch.setattr(device_search, "warp_is_there", lambda: request.param == "warp")
    return request.param


def difficult(rng: np.random.Generator) -> list[Atoms]:
    """Cells that are skew, left-handed, narrow, partly periodic, none; atoms far outside of them."""
    return [
        bulk("Cu", "fcc", a=3.5),
        Atoms("Si3", rng.random((3, 3)) * 5 - 40, cell=[[6, 0, 0], [2, 5, 0], [1, 2, 6]], pbc=True),
        Atoms("Si3", rng.random((3, 3)) * 5, cell=[[6, 0, 0], [5.5, 1.5, 0], [1, 2, -6]], pbc=True),
        Atoms("H", [[0.1, 0.2, 0.3]], cell=[[1.9, 0, 0], [0.3, 8, 0], [0, 0, 12]], pbc=True),
        Atoms("Si5", rng.random((5, 3)) * 9 + 30, cell=[[4, 0, 0], [1, 5, 0], [0, 0, 0]], pbc=[1, 1, 0]),
        Atoms("Si5", rng.random((5, 3)) * 9, cell=[[4, 0, 0], [1, 5, 0], [0, 2, 9]], pbc=[0, 1, 0]),
        Atoms("Si4", [[0, 0, 0], [1, 1, 1], [2, 2, 2], [90, 0, 0]]),
        Atoms("H", [[5.0, 5, 5]]),
    ]


def one_by_one(atoms: Atoms, radius: float, images: int) -> set[tuple]:
    """All pairs within ``radius``, with ``images`` cells to each side of where the atoms are."""
    found = set()
    along = [range(-images, images + 1) if periodic else (0,) for periodic in atoms.pbc]
    home = np.floor(atoms.positions @ np.linalg.inv(complete_cell(atoms.cell[:], atoms.pbc))) * atoms.pbc
    for i, j, shift in product(range(len(atoms)), range(len(atoms)), product(*along)):
        image = np.array(shift) + home[i] - home[j]
        r = np.linalg.norm(atoms.positions[j] - atoms.positions[i] + image @ atoms.cell[:])
        if r < radius and (i != j or image.any()):
            found.add((i, j, *image.astype(int).tolist()))
    return found


def search(atoms: list[Atoms], radii: list[float]) -> list[set[tuple]]:
    def tensor(array) -> torch.Tensor:
        return torch.from_numpy(np.array(array))

    sizes = np.array([len(a) for a in atoms])
    edges, images = device_search.find_pairs(
        tensor(np.concatenate([a.positions for a in atoms])), sizes,
        tensor([complete_cell(a.cell[:], a.pbc) for a in atoms]), tensor([a.pbc for a in atoms]), np.array(radii),
        most=4,
    )  # fmt: skip
    assert edges.dtype == images.dtype == torch.int64 and bool((edges[0].diff() >= 0).all())
    first = np.concatenate([[0], np.cumsum(sizes)])
    found = []
    for begin, end in zip(first[:-1], first[1:], strict=True):
        mine = (edges[0] >= begin) & (edges[0] < end)
        i, j = (edges[:, mine] - begin).tolist()
        pairs = list(zip(i, j, *images[mine].T.tolist(), strict=True))
        assert len(pairs) == len(set(pairs))
        found.append(set(pairs))
    return found


@pytest.mark.parametrize("block", [50, 8_000_000])
def test_searches_find_every_image(way: str, block: int, monkeypatch) -> None:
    monkeypatch.setattr(device_search, "BLOCK", block)
    for seed, radius in ((0, 4.0), (1, 2.0)):
        atoms = difficult(np.random.default_rng(seed))
        found = search(atoms, [radius] * len(atoms))
        for a, pairs in zip(atoms, found, strict=True):
            assert pairs == one_by_one(a, radius, 5), a
    radii = [3.0, 4.0, 3.0, 5.0, 4.5, 4.0, 120.0, 1.0]
    for a, radius, pairs in zip(atoms, radii, search(atoms, radii), strict=True):
        i, j, images = neighbour_list(a.positions, a.cell[:], a.pbc, radius)
        assert pairs == set(zip(i.tolist(), j.tolist(), *images.T.tolist(), strict=True))


def make_lists(atoms: list[Atoms], cutoff: float, changing: bool, **changes) -> DeviceLists:
    cells = torch.from_numpy(np.array([a.cell[:] for a in atoms]))
    smallest = [minimum_distance(a.positions, a.cell[:], a.pbc) for a in atoms]
    options = {"skin": 0.5, "max_edges": 250, "max_neighbours": 5000} | changes
    return DeviceLists(
        [a.numbers for a in atoms], cells, [a.pbc for a in atoms], [max(cutoff, d) for d in smallest],
        cutoff=cutoff, dtype=torch.float64, device=CPU, changing=changing, **options,
    )  # fmt: skip


def places(atoms: list[Atoms]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([a.positions for a in atoms]))


def cells_of(atoms: list[Atoms]) -> torch.Tensor:
    return torch.from_numpy(np.array([a.cell[:] for a in atoms]))


def check(lists: DeviceLists, atoms: list[Atoms], cutoff: float) -> None:
    """Every pair within the cutoff is in the graphs, once; what else is there is beyond the cutoff."""
    positions, seen = places(atoms), 0
    for chunk in lists.chunks:
        graph = lists.graph(chunk, positions)
        assert bool((graph.edge_index[0].diff() >= 0).all())
        first = 0
        for k in range(chunk.first, chunk.last):
            last = first + len(atoms[k])
            mine = (graph.edge_index[0] >= first) & (graph.edge_index[0] < last)
            i, j = (graph.edge_index[:, mine] - first).numpy()
            images = graph.cell_offsets[mine].numpy()
            vectors = atoms[k].positions[j] - atoms[k].positions[i] + images @ atoms[k].cell[:]
            near = np.linalg.norm(vectors, axis=1) < cutoff
            found = list(zip(i[near].tolist(), j[near].tolist(), *images[near].astype(int).T.tolist(), strict=True))
            a, b, shifts = neighbour_list(atoms[k].positions, atoms[k].cell[:], atoms[k].pbc, cutoff)
            assert sorted(found) == sorted(zip(a.tolist(), b.tolist(), *shifts.T.tolist(), strict=True))
            np.testing.assert_allclose(graph.cell[k - chunk.first].numpy(), atoms[k].cell[:], rtol=1e-12)
            first, seen = last, seen + 1
        assert graph.z.tolist() == [z for a in atoms[chunk.first : chunk.last] for z in a.numbers]
    assert seen == len(atoms)


@pytest.mark.parametrize("kind", ["fixed", "scaled", "strained"])
def test_graphs_and_smallest_distances_are_those_of_new_lists(kind: str, way: str) -> None:
    rng = np.random.default_rng(3)
    atoms = [
        bulk("Cu", "fcc", a=3.5).repeat((2, 2, 1)),
        bulk("NaCl", "rocksalt", a=5.2),
        Atoms("Si3", rng.random((3, 3)) * 5, cell=[[6, 0, 0], [2, 5, 0], [1, 2, -6]], pbc=True),
        bulk("Cu", "hcp", a=2.5).repeat((2, 1, 1)),
    ]
    if kind == "fixed":
        atoms += difficult(rng)[4:7]
    cutoff = 3.9
    lists = make_lists(atoms, cutoff, kind != "fixed")
    assert lists.build_all(places(atoms)) == {}
    assert len(lists.chunks) > 1 and lists.boundaries[0] == 0
    steps, built = 60, lists.rebuilds
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
        assert lists.update(places(atoms), cells_of(atoms)) == {}
        found = lists.minimum_distances(places(atoms)).numpy()
        exact = np.array([minimum_distance(a.positions, a.cell[:], a.pbc) for a in atoms])
        np.testing.assert_allclose(np.minimum(found, closest), np.minimum(exact, closest), rtol=1e-12)
        check(lists, atoms, cutoff)
        if step == 30:  # one leaves
            del atoms[1]
            closest = np.delete(closest, 1)
            kept = [0, *range(2, len(atoms) + 1)]
            lists.keep(kept, torch.isin(lists.batch, torch.tensor(kept)).nonzero().flatten())
            check(lists, atoms, cutoff)
    assert len(atoms) < lists.rebuilds - built < 0.7 * steps * len(atoms), "lists must be used again"


def test_lists_are_built_ahead_where_they_would_run_out(way: str) -> None:
    atoms = [bulk("Cu", "fcc", a=3.6).repeat((2, 2, 1)) for _ in range(3)]
    lists = make_lists(atoms, 4.0, False, skin=1.0)
    lists.build_all(places(atoms))
    for _ in range(4):
        for k, a in enumerate(atoms):
            a.positions[0, 0] += (0.0, 0.02, 0.08)[k]
        unread = Unread()
        lists.update(places(atoms), cells_of(atoms), unread)
        assert not bool(unread.happened())
    spent = lists.spent().tolist()
    np.testing.assert_allclose(spent, [0, 0.16, 0.64], atol=1e-12)
    before, built = lists.reference.clone(), lists.rebuilds
    assert lists.prepare(spent, 1, places(atoms)) == 1 and lists.rebuilds == built, "enough is left for a step"
    assert lists.prepare(spent, 5, places(atoms)) == 5  # a new list holds for five more, at 0.08 Å
    assert lists.rebuilds == built + 1
    moved = (lists.reference != before).any(1).reshape(3, -1).any(1).tolist()
    assert moved == [False, False, True]
    check(lists, atoms, 4.0)
    assert lists.prepare([0.0, 0.0, 0.99], 8, places(atoms)) == 1, "faster than a list can follow"
    atoms[1].positions[2] += 0.6
    unread = Unread()
    lists.update(places(atoms), cells_of(atoms), unread)
    assert bool(unread.happened()), "a list has run out, and nobody has built another"


def test_collapse_is_reported_and_keeps_the_old_list(way: str) -> None:
    atoms = [bulk("Cu", "fcc", a=3.6).repeat((2, 2, 1)) for _ in range(2)]
    lists = make_lists(atoms, 4.0, True, max_neighbours=60)
    lists.build_all(places(atoms))
    edges = lists.edge_counts()
    atoms[1].set_cell(atoms[1].cell[:] * 0.75, scale_atoms=True)
    found = lists.update(places(atoms), cells_of(atoms))
    assert list(found) == [1] and "neighbours within 4.50 Å, at most 60 allowed" in found[1]
    assert lists.edge_counts() == edges
    assert lists.prepare([0.0, 1.0], 4, places(atoms)) == 0, "the next step must be judged at once"
    # a clump, of which the mean density knows nothing
    clump = Atoms("H30", np.random.default_rng(0).random((30, 3)), cell=[40, 40, 40], pbc=True)
    lists = make_lists([clump], 4.0, False, max_neighbours=20)
    assert lists.build_all(places([clump])) == {0: "an atom has 29 neighbours within 4.50 Å, at most 20 allowed"}


def test_as_many_edges_as_fit_into_the_memory_of_a_device() -> None:
    structures = crystals(4)
    lists = make_lists(structures, 5.0, False, max_edges=ONE_CHUNK)
    lists.build_all(places(structures))
    assert lists.boundaries == [0]
    counts = lists.edge_counts()
    measured = []
    now = {"peak": 0}

    class Takes(Morse):
        def atomic_energies(self, graph):
            measured.append(graph.edge_index.shape[1])
            now["peak"] = 1000 + 40 * graph.edge_index.shape[1] + (7000 if len(measured) == 1 else 0)
            return super().atomic_energies(graph)

    memory = device_memory.Memory(
        lambda: 50 * sum(counts), lambda: 1000, lambda: now["peak"], lambda: now.update(peak=0)
    )  # fmt: skip
    fit = edges_that_fit(Takes(), lists, places(structures), True, memory)
    assert measured == [max(counts)] * 2 and fit == int(0.8 * 50 / 40 * sum(counts))
    lists.max_edges = max(counts)
    lists.cut()
    assert len(lists.boundaries) > 1
    assert edges_that_fit(RaisesAtOnce(), lists, places(structures), True, memory) == ONE_CHUNK
    assert edges_that_fit(Takes(), lists, places(structures), True, None) == ONE_CHUNK
    assert device_memory.memory_of(torch.device("meta")) is None
