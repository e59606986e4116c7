"""What can be used and is seldom meant is said at the start of a run, and in its report."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT

from mdl_physpre.structures.duplicates import also_in_training
from mdl_physpre.structures.labels import set_labels
from mdl_physpre.workflow.config.file import parse_config
from mdl_physpre.workflow.data import RunData
from mdl_physpre.workflow.doubts import doubts


def copper(n, seed):
    rng, found = np.random.default_rng(seed), []
    for _ in range(n):
        atoms = bulk("Cu", cubic=True) * (2, 1, 1)
        atoms.positions += 0.1 * rng.normal(size=(8, 3))
        atoms.calc = EMT()
        found.append(set_labels(atoms, atoms.get_potential_energy(), atoms.get_forces()))
    return found


TRAIN, TEST = copper(10, 1), copper(25, 2)


def said(test=TEST, **sections):
    raw = {
        "model": {"name": "CGCNN", "cutoff": 5.0},
        "dataset": {"src": "a.xyz"},
        "optim": {"batch_size": 4},
        **sections,
    }
    return doubts(parse_config(raw), RunData(TRAIN, TRAIN[:2][:0] + copper(2, 3), test))


def test_a_usual_run_is_not_doubted():
    assert said() == []


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [({"physpre": {"dynamics": {"timestep": 500}}}, "physpre.dynamics.timestep is 500 fs"),
     ({"physpre": {"dynamics": {"temperature": 0}}}, "temperature is 0 K"),
     ({"model": {"name": "CGCNN", "cutoff": 30.0}}, "model.cutoff is 30 Å: about 96"),
     ({"optim": {"batch_size": 64}}, "optim.batch_size is 64, the training set has 10")],
)  # fmt: skip
def test_what_is_seldom_meant(sections, sentence):
    (found,) = said(**sections)
    assert sentence in found


def moved(atoms, how):
    if how == "shifted":
        copy = atoms.copy()
        copy.positions += [0.3, 0.7, 0.1]
        copy.wrap()
    elif how == "permuted":
        copy = atoms[np.random.default_rng(0).permutation(len(atoms))]
    elif how == "rotated":
        copy = atoms.copy()
        copy.rotate(40, (1, 2, 3), rotate_cell=True)
    else:
        copy = atoms * (1, 2, 1) if how == "repeated" else atoms.copy()
    copy.calc = EMT()
    return set_labels(copy, copy.get_potential_energy())


@pytest.mark.parametrize("how", ["the same", "shifted", "permuted", "rotated", "repeated"])
def test_training_structures_in_the_test_set(how):
    test = [*TEST, moved(TRAIN[3], how), moved(TRAIN[7], how)]
    assert also_in_training(TRAIN, {"test": test}) == {"test": [25, 26]}
    (found,) = said(test=test)
    assert "test: 2 of 27 structures are suspected to be among the training structures, too (25, 26)" in found


def test_few_test_structures():
    (found,) = said(test=TEST[:5])
    assert "test has 5 structures" in found


def test_isolated_atoms_in_the_test_set():
    alone = set_labels(Atoms("Cu", info={"config_type": "IsolatedAtom"}), 3.5)
    (found,) = said(test=[*TEST, alone])
    assert "test: 1 of 26 structures are isolated atoms" in found


def test_an_entry_that_looks_like_a_label_of_some_structures():
    test = [a.copy() for a in TEST]
    for atoms, right in zip(test, TEST):
        set_labels(atoms, right.get_potential_energy(), right.get_forces(), np.eye(3) if atoms is test[0] else None)
        atoms.info["dft_virial"] = np.eye(3)
    (found,) = said(test=test)
    assert "dft_virial looks like virial and is not read; dataset.keys={virial: dft_virial}" in found
