"""Splits: disjoint, complete, of the right sizes, groups kept together; and the counts of labels."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from hypothesis import given, settings
from hypothesis import strategies as st

from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.structures import split_structures
from mdl_physpre.structures.labels import label_counts, set_labels
from mdl_physpre.structures.splits import format_label_counts

SIZES = st.one_of(st.integers(0, 12), st.floats(0, 0.6))


def structures_of(n, groups=None):
    return [Atoms("P", info={} if groups is None else {"group": groups[k]}) for k in range(n)]


@pytest.mark.parametrize(
    ("n", "val", "fraction", "expected"),
    [(2864, 0.1, 0.1, (244, 27, 143)), (4798, 0.1, 0.05, (205, 22, 239)), (4965, 0.05, 0.1, (448, 23, 248))],
)
def test_sizes_of_the_paper(n, val, fraction, expected):
    split = split_structures(structures_of(n), test=0.05, val=val, fraction=fraction)
    assert (len(split.train), len(split.val), len(split.test)) == expected


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(1, 80),
    test=SIZES,
    val=SIZES,
    fraction=st.floats(0.05, 1),
    seed=st.integers(0, 99),
    grouped=st.booleans(),
)
def test_disjoint_sized_and_reproducible(n, test, val, fraction, seed, grouped):
    groups = np.random.default_rng(seed).integers(0, max(1, n // 4), n).tolist()
    structures, by = structures_of(n, groups), "group" if grouped else None
    arguments = {"test": test, "val": val, "by": by, "seed": seed}
    try:
        split = split_structures(structures, fraction=fraction, **arguments)
    except DataError as error:
        assert "comes out empty" in str(error) or "group(s)" in str(error)
        return
    whole = split_structures(structures, **arguments)
    again = split_structures(structures, fraction=fraction, **arguments)
    assert split == again
    parts = (whole.train, whole.val, whole.test)
    assert sorted(k for part in parts for k in part) == list(range(n))
    assert split.test == whole.test
    assert set(split.train) <= set(whole.train)
    assert set(split.val) <= set(whole.val)
    assert len(split.train) == int(fraction * len(whole.train) + 1e-9)
    assert bool(whole.test) == (test > 0)
    assert bool(whole.val) == (val > 0)
    if grouped:
        assert sum(len({groups[k] for k in part}) for part in parts) == len(set(groups))
    else:
        assert len(whole.test) == (test if isinstance(test, int) else int(test * n + 1e-9))


def test_a_smaller_fraction_lies_within_a_larger_one():
    splits = [split_structures(structures_of(400), fraction=f, seed=3) for f in (0.05, 0.1, 0.5, 1.0)]
    for small, large in zip(splits, splits[1:]):
        assert set(small.train) < set(large.train)
        assert small.test == large.test


def test_fractions_that_binary_numbers_miss():
    split = split_structures(structures_of(100), test=0.29, val=0)  # 0.29 * 100 is 28.999... in double precision
    assert len(split.test) == 29


def test_seeds_differ():
    assert split_structures(structures_of(100), seed=1).test != split_structures(structures_of(100), seed=2).test


def test_group_sizes_come_near_what_is_asked_for():
    structures = structures_of(2060, [f"topology {k // 20}" for k in range(2060)])
    split = split_structures(structures, test=0.05, val=0.1, by="group")
    assert len(split.test) == 100
    assert len(split.val) in (180, 200)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"test": 0.05}, "the test set comes out empty: test=0.05"),
        ({"test": 2, "val": 0.05}, "the validation set comes out empty"),
        ({"test": 10}, "the training set comes out empty"),
        ({"test": 2, "val": 2, "fraction": 0.1}, r"the training set comes out empty.*\(6 before fraction\)"),
        ({"test": 2, "val": 2, "by": "group"}, r"2 group\(s\) for 3 sets"),
        ({"test": 2, "val": 2, "by": "gruop"}, "structure 0 has no such entry in info; did you mean 'group'"),
    ],
)
def test_empty_sets_and_missing_keys(arguments, message):
    with pytest.raises(DataError, match=message):
        split_structures(structures_of(10, ["a"] * 5 + ["b"] * 5), **arguments)


@pytest.mark.parametrize(
    "wrong", [{"test": 1.0}, {"val": -1}, {"test": True}, {"val": "10%"}, {"fraction": 0}, {"fraction": 1.1}]
)
def test_sizes_out_of_range(wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} is"):
        split_structures(structures_of(10), **wrong)


def test_no_structures():
    with pytest.raises(DataError, match="no structure to split"):
        split_structures([])


def test_label_counts():
    cell = {"cell": [9] * 3, "pbc": True}
    full = set_labels(Atoms("P", **cell), energy=0.0, forces=np.zeros((1, 3)), stress=np.zeros(6))
    part = set_labels(Atoms("P", **cell), energy=-1.0)
    assert label_counts([full, part, Atoms("P")]) == {"structures": 3, "energy": 2, "forces": 1, "stress": 1}
    counts = {"train": label_counts([full, part]), "test": label_counts([part])}
    assert counts["test"]["forces"] == 0
    assert format_label_counts(counts).splitlines()[1:] == [
        "train           2       2       1       1",
        "test            1       1       –       –",
    ]
