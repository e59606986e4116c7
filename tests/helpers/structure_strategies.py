"""Random labelled structures for property tests, and a few by hand."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from hypothesis import strategies as st

from mdl_physpre.structures.labels import set_labels

WORDS = st.text(
    alphabet=st.characters(codec="utf-8", exclude_categories=("Cs", "Cc"), exclude_characters="\x85\u2028\u2029"),
    max_size=12,
)
TRICKY = st.sampled_from(
    ["007", "1e5", "T", "a b", 'say "so"', "back\\slash", "{x}", "a=b", "1,2", "", "_JSON 3", "two\nlines", "[1]"]
)


@st.composite
def labelled_structures(draw, min_atoms=1, info=True):
    """One structure of 1 to 5 atoms, no two of them close, with any subset of the labels, periodic or not."""
    seed = draw(st.integers(0, 2**32 - 1))
    n = draw(st.integers(min_atoms, 5))
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3)
    positions = 2.5 * rng.permutation(grid)[:n] + rng.uniform(-0.5, 0.5, (n, 3))
    pbc = draw(st.sampled_from([(True, True, True), (False, False, False), (True, True, False)]))
    cell = np.eye(3) * 9 + rng.normal(size=(3, 3)) if any(pbc) or draw(st.booleans()) else np.zeros((3, 3))
    atoms = Atoms(numbers=rng.choice([1, 8, 14, 15, 25], n), positions=positions, cell=cell, pbc=pbc)
    stress = 0.001 * rng.normal(size=(3, 3))
    set_labels(
        atoms,
        energy=float(rng.normal() * 100) if draw(st.booleans()) else None,
        forces=rng.normal(size=(n, 3)) * 10.0 ** rng.integers(-3, 4) if draw(st.booleans()) else None,
        stress=stress + stress.T if all(pbc) and draw(st.booleans()) else None,
    )
    if info:
        atoms.info["note"] = draw(st.one_of(WORDS, TRICKY))
        atoms.info["count"] = draw(st.integers(-5, 5))
        atoms.info["flag"] = draw(st.booleans())
        atoms.info["vector"] = rng.normal(size=3)
        atoms.info["matrix"] = rng.normal(size=(2, 2))
        atoms.info["nested"] = {"a": [1, 2], "b": draw(TRICKY)}
        atoms.set_array("site", rng.integers(0, 9, n))
    return atoms


def water_like(energy=-14.2, cell=12.0):
    """A small periodic structure with all labels."""
    atoms = Atoms("OH2", positions=[[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], cell=[cell] * 3, pbc=True)
    rng = np.random.default_rng(3)
    return set_labels(
        atoms, energy=energy, forces=rng.normal(size=(3, 3)), stress=[0.01, 0.02, 0.03, 0.004, 0.005, 0.006]
    )
