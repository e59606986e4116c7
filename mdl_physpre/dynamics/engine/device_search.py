"""All pairs within reach in many structures at once, found on the device where the positions lie.

By ``nvalchemi-toolkit-ops`` (Warp) where it is installed, else by tensor operations that look at every pair of atoms
and every image that can be within reach, in blocks of fixed size. Both find all images in any cell, own images
included, whatever images of the atoms the positions are.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

BLOCK = 8_000_000
"""Candidates that are looked at together; each takes some 250 bytes."""


@lru_cache(maxsize=1)
def warp_is_there() -> bool:
    """Whether ``nvalchemi-toolkit-ops`` is installed."""
    return importlib.util.find_spec("nvalchemiops") is not None


def translations(images: Tensor, lattices: Tensor, structure: Tensor) -> Tensor:
    """S·cell (E, 3), Å, of images (E, 3) of cells (B, 3, 3): not by products of matrices, slow for so many so small."""
    rows = [lattices[:, k].index_select(0, structure) * images[:, k : k + 1] for k in range(3)]
    return rows[0].add_(rows[1]).add_(rows[2])


def find_pairs(
    positions: Tensor, sizes: np.ndarray, lattices: Tensor, pbc: Tensor, radii: np.ndarray, *, most: int = 64
) -> tuple[Tensor, Tensor]:
    """Pairs (2, E) int64, sorted by centre, and their images (E, 3) int64: 0 < |r_j + S·cell − r_i| < R.

    Parameters
    ----------
    positions : (n, 3), Å, of all structures, one after another.
    sizes : (B,) atoms of each structure.
    lattices : (B, 3, 3), Å, float64, of full rank also where a direction is not periodic.
    pbc : (B, 3) bool.
    radii : (B,), R of each structure, Å.
    most : neighbours of an atom for which memory is taken at first.
    """
    if not len(sizes):
        none = torch.zeros((0, 3), dtype=torch.int64, device=positions.device)
        return none.new_zeros((2, 0)), none
    if warp_is_there() and positions.device.type in ("cpu", "cuda"):
        return _by_warp(positions, sizes, lattices, pbc, radii, most)
    return by_tensors(positions, sizes, lattices, pbc, radii)


def _by_warp(
    positions: Tensor, sizes: np.ndarray, lattices: Tensor, pbc: Tensor, radii: np.ndarray, most: int
) -> tuple[Tensor, Tensor]:
    """One search for each radius, because it takes one for all; nearly always there is but one."""
    device, distinct = positions.device, np.unique(radii)
    found = []
    for radius in distinct:
        mine = radii == radius
        if mine.all():
            found.append(_one_search(positions, sizes, lattices, pbc, float(radius), most))
            continue
        atoms = torch.from_numpy(np.flatnonzero(np.repeat(mine, sizes))).to(device)
        rows = torch.from_numpy(np.flatnonzero(mine)).to(device)
        edges, images = _one_search(positions[atoms], sizes[mine], lattices[rows], pbc[rows], float(radius), most)
        found.append((atoms[edges], images))
    edges, images = torch.cat([e for e, _ in found], dim=1), torch.cat([s for _, s in found])
    if len(distinct) > 1:
        order = torch.sort(edges[0], stable=True).indices
        edges, images = edges.index_select(1, order), images.index_select(0, order)
    return edges, images


def _one_search(
    positions: Tensor, sizes: np.ndarray, lattices: Tensor, pbc: Tensor, radius: float, most: int
) -> tuple[Tensor, Tensor]:
    from nvalchemiops.neighbors.neighbor_utils import NeighborOverflowError
    from nvalchemiops.torch.neighbors import neighbor_list

    device = positions.device
    first = torch.from_numpy(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)).to(device)
    batch = torch.from_numpy(np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)).to(device)
    while True:
        try:
            edges, _, images = neighbor_list(
                positions, radius, cell=lattices, pbc=pbc, batch_idx=batch, batch_ptr=first, return_neighbor_list=True,
                max_neighbors=most,
            )  # fmt: skip
        except NeighborOverflowError:
            most *= 2
            continue
        return edges.to(torch.int64), images.to(torch.int64)


def by_tensors(
    positions: Tensor, sizes: np.ndarray, lattices: Tensor, pbc: Tensor, radii: np.ndarray
) -> tuple[Tensor, Tensor]:
    """:func:`find_pairs` by tensor operations."""
    device = positions.device

    def rows(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    batch = rows(np.repeat(np.arange(len(sizes)), sizes))
    inverse = torch.linalg.inv_ex(lattices).inverse
    whole = torch.floor(translations(positions, inverse, batch)) * pbc.index_select(0, batch)
    inside = positions - translations(whole, lattices, batch)
    whole = whole.to(torch.int64)
    # the distance of opposite faces is 1 / |column of the inverse|; atoms of one cell lie less than one cell apart
    columns = torch.linalg.vector_norm(inverse, dim=1)
    reach = ((rows(radii)[:, None] * columns).floor().to(torch.int64) + 1) * pbc
    span = 2 * reach.cpu().numpy() + 1  # images along each direction
    images_of = span.prod(1)
    ends = np.cumsum(sizes * sizes * images_of)
    first_atom, first = np.cumsum(sizes) - sizes, np.concatenate([[0], ends[:-1]])
    # of each structure: first candidate, first atom, atoms, images, and images along the second and third direction
    table = rows(np.stack([first, first_atom, sizes, images_of, span[:, 1], span[:, 2]]).astype(np.int64))
    last, squared = rows(ends), rows(radii).square()
    edges, offsets = [], []
    for start in range(0, int(ends[-1]), BLOCK):
        candidate = torch.arange(start, min(start + BLOCK, int(ends[-1])), device=device)
        of = torch.searchsorted(last, candidate, right=True)
        begin, atom, n, images, second, third = table.index_select(1, of)
        rest = candidate - begin
        image, pair = rest % images, rest // images
        i, j = atom + pair // n, atom + pair % n
        shift = torch.stack([image // (second * third), image // third % second, image % third], dim=1)
        shift = shift - reach.index_select(0, of)
        vectors = inside.index_select(0, j) - inside.index_select(0, i)
        vectors += translations(shift, lattices, of)
        near = vectors.square().sum(1) < squared.index_select(0, of)
        near &= (i != j) | (shift != 0).any(1)
        kept = near.nonzero().flatten()
        i, j = i.index_select(0, kept), j.index_select(0, kept)
        edges.append(torch.stack([i, j]))
        offsets.append(shift.index_select(0, kept) + whole.index_select(0, i) - whole.index_select(0, j))
    return torch.cat(edges, dim=1), torch.cat(offsets)
