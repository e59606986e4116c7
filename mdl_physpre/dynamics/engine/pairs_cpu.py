"""Which pairs of a neighbour list lie within the cutoff, in C where there is a compiler: tensor operations on so many
pairs cost as much as an embedded-atom potential."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from mdl_physpre.potentials.kernels.c_code import CCode

CODE = CCode(
    Path(__file__).with_name("pairs_cpu.c"),
    {torch.float32: "float", torch.float64: "double"},
    "choosing pairs of neighbour lists",
)


def pairs_inside(
    edges: Tensor, offsets: Tensor, shift: Tensor, positions: Tensor, cutoff: float
) -> tuple[Tensor, Tensor] | None:
    """The pairs closer than ``cutoff`` (2, n), and their offsets (n, 3), in order; None where C is not to be had.

    Parameters
    ----------
    edges, offsets, shift : pairs (2, n), their images (n, 3), and the translations of these (n, 3), Å, float64.
    positions : (n_atoms, 3), Å, float64.
    """
    real = CODE.dtypes.get(offsets.dtype) if positions.device.type == "cpu" else None
    found = None if real is None else CODE.library(real)
    if found is None:
        return None
    held = [t.contiguous() for t in (*edges, shift, positions, offsets)]
    centre, neighbour, shift, positions, offsets = held
    # one place more, because what is not kept is written, too
    kept, images, count = edges.new_empty(2, len(shift) + 1), offsets.new_empty(len(shift) + 1, 3), ctypes.c_int64()
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (centre, neighbour, shift, positions)]
    outputs = [ctypes.c_void_p(t.data_ptr()) for t in (offsets, kept[0], kept[1], images)]
    found.inside(ctypes.c_int64(len(shift)), *pointers, ctypes.c_double(cutoff), *outputs, ctypes.byref(count))
    return kept[:, : count.value], images[: count.value]
