"""Batches: complete, within their limits, and the same for the same seed and epoch."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mdl_physpre.structures.graph import GraphDataset
from mdl_physpre.training.data import GraphBatches, batch_indices, fingerprint
from tests.helpers.tiny_potential import CUTOFF, cells, labelled


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=40),
    st.integers(1, 9),
    st.one_of(st.none(), st.integers(1, 80)),
    st.one_of(st.none(), st.integers(0, 5)),
    st.integers(0, 3),
)
def test_every_structure_once_and_within_the_limits(n_edges, batch_size, max_edges, seed, epoch):
    n_edges = np.array(n_edges)
    batches = batch_indices(n_edges, batch_size, max_edges, seed, epoch)
    assert sorted(k for batch in batches for k in batch) == list(range(len(n_edges)))
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    if max_edges is not None:
        assert all(len(batch) == 1 or n_edges[batch].sum() <= max_edges for batch in batches)
    assert batches == batch_indices(n_edges, batch_size, max_edges, seed, epoch)
    if seed is None:
        assert [k for batch in batches for k in batch] == list(range(len(n_edges)))


def test_order_changes_with_seed_and_epoch():
    sizes = np.ones(50)
    orders = [tuple(map(tuple, batch_indices(sizes, 8, None, s, e))) for s in range(3) for e in range(3)]
    assert len(set(orders)) == 9


def test_batches_hold_the_structures_they_name():
    structures = labelled(cells(5))
    dataset = GraphDataset(structures, CUTOFF)
    batches = GraphBatches(dataset, [[3, 1], [0]])
    assert len(batches) == 2
    first, second = batches
    energies = [structures[3].get_potential_energy(), structures[1].get_potential_energy()]
    assert first.energy.tolist() == energies
    assert len(list(batches)) == 2  # can be gone through again


def test_fingerprint_follows_structures_and_labels():
    dataset = GraphDataset(labelled(cells(4)), CUTOFF)
    again = GraphDataset(labelled(cells(4)), CUTOFF)
    other_labels = GraphDataset(labelled(cells(4), scale=2.0), CUTOFF)
    assert fingerprint(dataset) == fingerprint(again)
    assert len({fingerprint(d) for d in (dataset, other_labels, GraphDataset(labelled(cells(3)), CUTOFF))}) == 3
