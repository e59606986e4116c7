"""MatDeepLearn's equivariant transformer with a total energy that is the sum of atomic energies."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch_geometric.nn import global_add_pool

from mdl_physpre.hosts.matdeeplearn.names import host

host()  # puts MatDeepLearn on the path, or says that it is not there
TorchMDETEarly: Any = import_module("matdeeplearn.models.torchmd_etEarly").TorchMD_ET_Early


class TorchMDETLate(TorchMDETEarly):
    """MatDeepLearn's ``torchmd_etEarly``, with E = Σ_i out(x_i) in place of E = out(Σ_i x_i).

    MatDeepLearn's main adds up atomic features before the output network, whatever ``pool_order`` says, so that energy
    does not grow in proportion to the structure. The paper's version, and :class:`~mdl_physpre.potentials.TorchMDET`,
    add up atomic energies. Parameters and their names are the same.
    """

    gradient: Any
    prediction_level: str

    def _forward(self, data: Any) -> Tensor:
        level, self.prediction_level = self.prediction_level, "node"
        try:
            atomic = super()._forward(data)
        finally:
            self.prediction_level = level
        with torch.set_grad_enabled(bool(self.gradient) or torch.is_grad_enabled()):
            return global_add_pool(atomic, data.batch)
