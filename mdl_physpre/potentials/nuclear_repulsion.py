"""Screened repulsion of nuclei: how steep a wall is at distances where no DFT data are."""
from __future__ import annotations

import torch
from torch import Tensor

COULOMB = 14.399645  # e²/(4π ε0), eV·Å


def nuclear_repulsion(zi: int, zj: int, r: Tensor) -> Tensor:
    """Universal screened Coulomb repulsion of two nuclei, eV, of distances r in Å.

    V = Z_i Z_j e²/(4πε0 r) χ(r/a), a = 0.46850/(Z_i^0.23 + Z_j^0.23) Å,
    χ(x) = 0.18175 e^{−3.19980x} + 0.50986 e^{−0.94229x} + 0.28022 e^{−0.40290x} + 0.02817 e^{−0.20162x}.

    Source: J. F. Ziegler, J. P. Biersack, U. Littmark, The Stopping and Range of Ions in Matter (1985).
    """
    x = r * (zi**0.23 + zj**0.23) / 0.46850
    terms = ((0.18175, 3.19980), (0.50986, 0.94229), (0.28022, 0.40290), (0.02817, 0.20162))
    return COULOMB * zi * zj / r * sum(c * torch.exp(-d * x) for c, d in terms)  # type: ignore[operator]
