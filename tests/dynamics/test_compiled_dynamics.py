"""Dynamics with a compiled potential."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from ase.build import bulk

from mdl_physpre import simulate
from mdl_physpre.dynamics.running import batch
from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.potentials import EAMInteraction
from mdl_physpre.potentials.compiled import CompiledPotential


def test_steps_are_those_without_compilation(monkeypatch):
    made = []

    def compiled(potential):
        made.append(potential)
        return CompiledPotential(potential, backend="aot_eager")

    monkeypatch.setattr(batch, "compiled", compiled)
    potential, structures = EAMInteraction(["Si"], cutoff=4.0, n_basis=2).double(), [bulk("Si", cubic=True)]
    run = partial(simulate, potential, structures, progress=False)
    settings = dict(temperature=300.0, steps=6, timestep=1.0)
    plain, traced = run(DynamicsSettings(**settings)), run(DynamicsSettings(**settings, compile=True))
    assert made == [potential]
    one, other = plain[0], traced[0]
    assert other.status == one.status and other.failures == one.failures == ()
    numbers = {k: v for k, v in one.metrics.items() if isinstance(v, float) and np.isfinite(v)}
    assert len(numbers) > 3
    for key, value in numbers.items():
        assert other.metrics[key] == pytest.approx(value, rel=1e-7, abs=1e-7), key
