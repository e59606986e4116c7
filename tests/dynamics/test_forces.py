from __future__ import annotations

import pytest
import torch
from ase.build import bulk

from mdl_physpre.dynamics import Verdict
from mdl_physpre.dynamics.engine import forces
from mdl_physpre.dynamics.running.simulate import simulate
from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.potentials.backbones.cgcnn.network import CGCNN


@pytest.fixture
def two_threads(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(forces, "SHARE_EDGES", 50)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
    forces._workers.cache_clear()


def silicon(n: int = 7) -> list:
    structures = [bulk("Si", cubic=True) * (1, 1, 1 + k % 2) for k in range(n)]
    for k, atoms in enumerate(structures):
        atoms.rattle(0.05, seed=k)
    return structures


class Watched(CGCNN):
    """Tells which threads evaluated it, with how many threads inside; raises for one structure, if asked to."""

    def predictions(self, graph, forces, stress):
        import threading

        self.seen.add((threading.current_thread() is threading.main_thread(), torch.get_num_threads()))
        if self.refused is not None and bool((graph.z == self.refused).any()):
            raise ValueError("not this one")
        return super().predictions(graph, forces, stress)


def watched(refused: int | None = None) -> Watched:
    torch.manual_seed(0)
    potential = Watched(elements=None, cutoff=4.0, dim1=8, gc_count=2).double()
    potential.seen, potential.refused = set(), refused
    return potential


def run(potential, structures, max_edges: int) -> list[Verdict]:
    settings = DynamicsSettings(steps=20, timestep=1.0, max_edges=max_edges, lindemann_min_steps=10)
    return simulate(potential, structures, settings, progress=False)


def test_chunks_on_several_threads_give_what_one_thread_gives(two_threads):
    potential = watched()
    several = run(potential, silicon(), max_edges=1000)
    assert (False, 1) in potential.seen  # a worker, whose operations run on one thread
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    alone = watched()
    single = run(alone, silicon(), max_edges=1000)
    assert alone.seen == {(True, 1)}
    for a, b in zip(several, single, strict=True):
        assert a.status == b.status and a.steps_run == b.steps_run == 20
        assert a.metrics["min_distance"] == pytest.approx(b.metrics["min_distance"], rel=1e-9)


def test_an_error_in_one_thread_loses_one_structure(two_threads):
    structures = silicon()
    structures[3].numbers[0] = 32
    found = run(watched(refused=32), structures, max_edges=1000)
    assert [v.reasons for k, v in enumerate(found) if k != 3] == [()] * 6
    assert found[3].reasons == ("potential_error",) and "not this one" in found[3].failures[0].text


def test_threads_share_the_edges_that_fit_into_memory(two_threads):
    cpu = torch.device("cpu")
    assert forces.chunks_at_once(watched(), cpu, 1000) == 2
    assert forces.chunks_at_once(watched(), cpu, 60) == 1
    assert forces.chunks_at_once(watched(), torch.device("meta"), 1000) == 1
    other = watched()
    other.concurrent = False
    assert forces.chunks_at_once(other, cpu, 1000) == 1
