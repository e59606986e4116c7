"""The example of docs/extending/backbone.md runs, and passes ``mdl_physpre.testing``."""

from __future__ import annotations

import pytest
import torch

from mdl_physpre.potentials import Potential
from tests.helpers.pages import run_page


def test_the_network_of_the_page_passes_the_checks(tmp_path):
    run_page("extending/backbone.md", tmp_path)


def test_a_class_that_has_atomic_energies_and_derives_from_potential_is_told_what_to_do():
    with pytest.raises(TypeError, match=r"Old defines atomic_energies: .* mdl_physpre\.potentials\.Backbone"):

        class Old(Potential):
            def atomic_energies(self, graph):
                return torch.zeros(len(graph.z))
