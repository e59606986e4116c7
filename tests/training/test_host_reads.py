"""How often the host waits for the device in a training step: each wait stops a GPU until the host has caught up."""

from __future__ import annotations

import collections

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mdl_physpre.structures.graph import GraphDataset
from mdl_physpre.training.module import PotentialTraining
from mdl_physpre.training.replay import Replay
from mdl_physpre.training.settings import TrainingSettings
from mdl_physpre.training.train import train_potential
from tests.helpers.tiny_potential import CUTOFF, TinyPotential, cells, labelled

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "bincount", "equal", "is_nonzero")


class Reads(TorchDispatchMode):
    """Counts the operations whose result the host needs; ``tolist`` reads memory without one."""

    def __init__(self):
        super().__init__()
        self.seen = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[-1]
        indices = args[1] if name.startswith("index") and isinstance(args[1], list) else ()
        masks = any(isinstance(t, torch.Tensor) and t.dtype == torch.bool for t in indices)
        self.seen[name] += name in WAITS or masks
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["plain", "sam", "replay", "huber"])
def test_a_training_step_reads_the_device_once(tmp_path, monkeypatch, kind):
    train, val = (GraphDataset(labelled(cells(n, seed=n)), CUTOFF) for n in (12, 4))
    reads, tolist, step = Reads(), torch.Tensor.tolist, PotentialTraining.training_step
    validate, counted = PotentialTraining.validation_step, collections.Counter()

    def read(tensor):
        reads.seen["tolist"] += 1
        return tolist(tensor)

    def watched(function, name):
        def wrapped(*arguments):
            before = reads.seen.total()
            with reads, monkeypatch.context() as patch:
                patch.setattr(torch.Tensor, "tolist", read)
                function(*arguments)
            counted[name, reads.seen.total() - before] += 1

        return wrapped

    monkeypatch.setattr(PotentialTraining, "training_step", watched(step, "step"))
    monkeypatch.setattr(PotentialTraining, "validation_step", watched(validate, "validation"))
    settings = {
        "sam": {"sam_rho": 0.05},
        "huber": {"loss": "conditional_huber", "force_tail": 1.0, "clip_grad_norm": None},
    }.get(kind, {})
    options = {"replay": Replay(val, TrainingSettings(max_epochs=1), weight=0.5)} if kind == "replay" else {}
    torch.manual_seed(0)
    made = TrainingSettings(max_epochs=2, batch_size=4, device="cpu", **settings)
    train_potential(TinyPotential(), train, val, made, tmp_path, **options)
    assert counted == {("step", 1): 6, ("validation", 0): 2}
