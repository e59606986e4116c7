"""Isolated atoms: found among structures, and what they decide where composition leaves the energies open."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.potentials.energy_reference import fit_energy_reference, inseparable_elements
from mdl_physpre.structures.isolated import is_isolated, take_isolated
from mdl_physpre.structures.labels import set_labels
from mdl_physpre.structures.write import write_structures
from mdl_physpre.workflow.config.file import parse_config
from mdl_physpre.workflow.data import load_data
from mdl_physpre.workflow.doubts import doubts
from tests.helpers.tiny_potential import cells

ALONE = {"Si": -0.8, "O": -1.5}
BOUND = {"Si": -5.0, "O": -7.0}


def atom(symbol, energy, cell=20.0, **info):
    made = Atoms(symbol, cell=[cell] * 3, pbc=True, info=info)
    return made if energy is None else set_labels(made, energy, np.zeros((1, 3)))


def silica(n, seed=0):
    """Cells of Si2O4, whose energies are sums over the atoms."""
    found = []
    for k in range(n):
        made = cells(1, seed=seed + k)[0]
        made.symbols[:] = "Si"
        made = made + Atoms("O2", positions=[[1, 1, 1], [2, 3, 3]])
        made.symbols[:4] = ["Si", "O", "Si", "O"]
        found.append(set_labels(made, sum(BOUND[s] for s in made.symbols), np.zeros((6, 3))))
    return found


def test_which_structures_are_isolated_atoms():
    assert is_isolated(atom("Si", 0.0)) and is_isolated(Atoms("Si"))
    assert is_isolated(atom("Si", 0.0, cell=5.0, config_type="IsolatedAtom"))
    assert is_isolated(atom("Si", 0.0, cell=5.0, config_type="isolated_atom"))
    assert not is_isolated(bulk("Cu")) and not is_isolated(atom("Si", 0.0, cell=7.9))
    assert not is_isolated(Atoms("Si2", [[0, 0, 0], [2, 0, 0]], info={"config_type": "IsolatedAtom"}))
    skewed = Atoms("Si", cell=[[20, 0, 0], [20, 3, 0], [0, 0, 20]], pbc=True)  # two vectors are long, an image is near
    assert not is_isolated(skewed)
    skewed.pbc = [False, False, True]
    assert is_isolated(skewed)


def test_the_lowest_energy_counts_and_atoms_without_one_stay():
    given = [atom("Si", -0.5), atom("O", -1.5), *silica(2), atom("Si", -0.8), atom("Si", None)]
    rest, energies = take_isolated(given)
    assert energies == ALONE and len(rest) == 3 and rest[:2] == given[2:4]


def test_isolated_atoms_decide_what_composition_leaves_open():
    found = fit_energy_reference(silica(3), ALONE).as_dict()
    assert 2 * found[14] + 4 * found[8] == pytest.approx(2 * BOUND["Si"] + 4 * BOUND["O"])
    # what bonds give is shared by the shortest vector along (2, 4)
    shift = np.array([found[14] - ALONE["Si"], found[8] - ALONE["O"]])
    assert shift[1] == pytest.approx(2 * shift[0])
    plain = fit_energy_reference(silica(3)).as_dict()
    assert plain[8] == pytest.approx(2 * plain[14]), "of minimum norm without them"
    other = silica(2)
    lone = cells(1)[0]
    lone.symbols[:] = "O"
    both = [*other, set_labels(lone, 4 * BOUND["O"], np.zeros((4, 3)))]
    assert fit_energy_reference(both, ALONE).as_dict() == pytest.approx({14: BOUND["Si"], 8: BOUND["O"]})
    assert inseparable_elements(both) == [] and inseparable_elements(other) == ["O", "Si"]


def test_elements_that_vary_together_are_named():
    def of(*formulas):
        return [Atoms(f) for f in formulas]

    assert inseparable_elements(of("LiMnO2", "Li2Mn2O4", "O2")) == ["Li", "Mn"]
    assert inseparable_elements(of("Si", "Si8")) == [] and inseparable_elements(of("SiO", "SiO2")) == []
    assert inseparable_elements(of("LiO", "MnO")) == ["Li", "O", "Mn"]


def config(folder, **dataset):
    raw = {"src": str(folder / "data.xyz"), "split": {"test": 2, "val": 2}, **dataset}
    optim = {"weight_stress": 0, "batch_size": 4}
    return parse_config({"model": {"name": "CGCNN"}, "optim": optim, "dataset": raw})


@pytest.fixture
def folder(tmp_path):
    write_structures(tmp_path / "data.xyz", [atom("Si", -0.8), *silica(8), atom("O", -1.5)])
    return tmp_path


def test_a_run_takes_them_out_and_tells(folder, caplog):
    plain = load_data(config(folder))
    assert sum(map(len, (plain.train, plain.val, plain.test))) == 10 and not plain.isolated
    with caplog.at_level(logging.INFO, logger="mdl_physpre"):
        data = load_data(config(folder, energies_of_elements="isolated_atoms"))
    assert "isolated atoms: Si -0.8 eV, O -1.5 eV; 2 structures, which are not trained on" in caplog.text
    assert data.isolated == ALONE and data.key != plain.key
    assert all(len(a) == 6 for part in (data.train, data.val, data.test) for a in part)
    assert not any("cannot be told apart" in line for line in doubts(config(folder), data))


def test_without_one_of_an_element_the_fit_decides_and_says_so(tmp_path, caplog):
    write_structures(tmp_path / "data.xyz", [atom("Si", -0.8), *silica(8)])
    data = load_data(config(tmp_path, energies_of_elements="isolated_atoms"))
    assert data.isolated == {} and "no isolated atom of O: energies of the elements are fitted alone" in caplog.text
    (said,) = [line for line in doubts(config(tmp_path), data) if "told apart" in line]
    assert said.startswith("the energies of O, Si cannot be told apart")


def test_energies_by_hand(folder):
    given = config(folder, energies_of_elements={"Si": -1, "O": -2})
    assert load_data(given).isolated == {"Si": -1.0, "O": -2.0}
    with pytest.raises(DataError, match="energies_of_elements names Si; .* hold O, too"):
        load_data(config(folder, energies_of_elements={"Si": -1.0}))
    with pytest.raises(ConfigError, match=r"dataset\.energies_of_elements.*'Sj' is no element"):
        config(folder, energies_of_elements={"Sj": -1.0})
