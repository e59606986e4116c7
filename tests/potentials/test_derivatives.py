"""``potentials.derivatives``: volumes, and the one map of a virial to a stress."""

from __future__ import annotations

import torch

from mdl_physpre.potentials.derivatives import stress_of, volumes


def cells() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.cat([torch.randn(3, 3, 3, dtype=torch.float64), torch.zeros(1, 3, 3, dtype=torch.float64)])


def test_volumes_are_those_of_the_cells():
    torch.testing.assert_close(volumes(cells()), torch.linalg.det(cells()).abs())


def test_a_stress_is_symmetric_and_nan_without_a_cell_alone():
    virial = torch.randn(4, 3, 3, dtype=torch.float64)
    stress = stress_of(virial, volumes(cells()))
    assert stress[3].isnan().all()
    for k in range(3):
        symmetric = 0.5 * (virial[k] + virial[k].T) / torch.linalg.det(cells()[k]).abs()
        torch.testing.assert_close(stress[k], symmetric)


def test_no_nan_reaches_gradients_and_the_map_is_its_own_adjoint():
    virial = torch.randn(4, 3, 3, dtype=torch.float64, requires_grad=True)
    pull = torch.randn(4, 3, 3, dtype=torch.float64)
    (stress_of(virial, volumes(cells()))[:3] * pull[:3]).sum().backward()
    torch.testing.assert_close(virial.grad[:3], stress_of(pull, volumes(cells()))[:3])
    assert (virial.grad[3] == 0).all()
