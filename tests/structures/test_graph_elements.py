"""What a graph knows of its elements."""

from __future__ import annotations

import pytest
import torch
from ase.build import bulk

from mdl_physpre import build_graph, evaluate
from mdl_physpre.errors import DataError
from mdl_physpre.potentials import CGCNN
from mdl_physpre.structures import AtomGraph


@pytest.mark.parametrize("change", ["assigned", "in place", "in a copy", "by from_tensors"])
def test_elements_are_those_that_are_there_now(change):
    potential = CGCNN(["Si"], 3.0, dim1=4, dim2=4, gc_count=1, post_fc_count=0)
    graph = build_graph(bulk("Si"), 3.0, dtype=torch.float32)
    assert graph.elements == {14}
    evaluate(potential, graph)
    if change == "assigned":
        graph.z = torch.full_like(graph.z, 6)
    elif change == "in place":
        graph.z[0] = 6
    elif change == "in a copy":
        graph = graph.clone()
        graph.z[:] = 6
    else:
        graph = AtomGraph.from_tensors(graph, z=torch.full_like(graph.z, 6))
    with pytest.raises(DataError, match="holds C"):
        evaluate(potential, graph)


def test_they_go_along_to_another_graph_of_the_same_atoms(monkeypatch):
    graph = build_graph(bulk("NaCl", "rocksalt", a=5.6), 3.0)
    monkeypatch.setattr(torch.Tensor, "unique", None)  # nobody looks at the atoms again
    assert AtomGraph.from_tensors(graph, pos=graph.pos + 1.0).elements == {11, 17}
    assert graph.on("meta").elements == {11, 17}
