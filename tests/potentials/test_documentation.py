"""The example of docs/backbones.md does what the page says."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from mdl_physpre import build_graph, evaluate, load_potential, save_potential
from mdl_physpre.potentials import Potential
from tests.helpers.small_cells import crystal

PAGE = Path(__file__).parents[2] / "docs" / "backbones.md"


def test_the_network_of_the_page_gives_forces_and_is_saved(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    module = types.ModuleType("springs_of_the_page")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(code, module.__dict__)
    springs = module.Springs(cutoff=4.0).double()
    springs.shift_reference(torch.full((119,), -3.0))
    atoms = crystal()
    graph = build_graph(atoms, 4.0)
    found = evaluate(springs, graph)
    steps = []
    for h in (-1e-4, 1e-4):
        moved = atoms.copy()
        moved.positions[1, 2] += h
        steps.append(float(evaluate(springs, build_graph(moved, 4.0)).energies))
    np.testing.assert_allclose(float(found.forces[1, 2]), (steps[0] - steps[1]) / 2e-4, rtol=1e-6, atol=1e-7)
    longer = evaluate(springs, build_graph(atoms, 5.0))  # edges beyond the cutoff count nothing
    torch.testing.assert_close(longer.forces, found.forces, rtol=1e-10, atol=1e-12)
    loaded = load_potential(save_potential(tmp_path / "springs.pt", springs))
    torch.testing.assert_close(evaluate(loaded, graph).energies, found.energies)


def test_a_class_that_has_atomic_energies_and_derives_from_potential_is_told_what_to_do():
    with pytest.raises(TypeError, match=r"Old defines atomic_energies: derive it from mdl_physpre\.Backbone"):

        class Old(Potential):
            def atomic_energies(self, graph):
                return torch.zeros(len(graph.z))
