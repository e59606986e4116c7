"""Radial distribution functions taken while structures are simulated: one accumulator for each, one file for all."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from mdl_physpre.analysis.radial_distribution import (
    MAX_DENSITY,
    RDF,
    NamedRDF,
    RDFAccumulator,
    average_rdfs,
)
from mdl_physpre.dynamics.engine.device_search import find_pairs, translations
from mdl_physpre.dynamics.engine.moving_atoms import MovingAtoms
from mdl_physpre.dynamics.running.storage import RDFS, write_atomically
from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.errors import DataError
from mdl_physpre.structures.neighbours import complete_cell
from mdl_physpre.utils.record import Record

logger = logging.getLogger(__name__)


class RDFSampler:
    """Accumulators of all structures of a run, by their places in its list."""

    def __init__(self, settings: DynamicsSettings, structures: Sequence[Atoms]) -> None:
        self.settings, self.pbc = settings, [np.array(a.pbc) for a in structures]
        self.sums = [
            RDFAccumulator(a.numbers, settings.rdf_r_max, settings.rdf_bins, settings.rdf_smoothing) for a in structures
        ]
        self.cells = [a.cell[:] for a in structures]
        ends = np.cumsum([sums.counts.size for sums in self.sums], dtype=np.int64)
        self.first = np.concatenate([[0], ends])  # place of each structure's counts in one long array
        self.device_sums: tuple[Tensor, Tensor, Tensor, Tensor] | None = None

    def due(self, step: int) -> bool:
        """Whether this step is sampled."""
        s = self.settings
        return step >= s.rdf_start and step % s.rdf_interval == 0

    def take(self, structures: Sequence[int], atoms: MovingAtoms) -> None:
        """Take a frame of each of these structures, whose atoms ``atoms`` are; a collapsed one is left out."""
        if atoms.positions.device.type != "cpu":
            self.take_together(structures, atoms)
            return
        positions, cells = atoms.positions.numpy(), atoms.cells.numpy()
        ends = np.cumsum(atoms.counts.numpy())[:-1]
        for k, mine, cell in zip(structures, np.split(positions, ends), cells, strict=True):
            self._add(k, mine, cell)

    def _add(self, k: int, positions: np.ndarray, cell: np.ndarray) -> None:
        try:
            self.sums[k].add(positions, cell, self.pbc[k])
        except DataError as error:
            logger.debug("structure %d: %s", k, error)

    def take_together(self, structures: Sequence[int], atoms: MovingAtoms) -> None:
        """The same for all at once, on the device: counts stay there until the sums are asked for."""
        device, places = atoms.positions.device, np.array(structures)
        if self.device_sums is None:
            size, n = int(self.first[-1]), len(self.sums)
            whole, real = (torch.zeros(size, dtype=t, device=device) for t in (torch.int64, torch.float64))
            self.device_sums = whole, real, whole.new_zeros(n), real.new_zeros(n)
        counts, volume_counts, frames, inverse_volume = self.device_sums
        sizes = np.array([len(self.sums[k].species) for k in structures])
        volumes = torch.linalg.det(atoms.cells).abs().cpu().numpy()
        whole_period = np.array([bool(self.pbc[k].all()) for k in structures])
        sound = ~whole_period | (sizes <= MAX_DENSITY * volumes)
        taken = torch.from_numpy(np.flatnonzero(np.repeat(sound, sizes))).to(device)
        cells = np.array([complete_cell(self.cells[k], self.pbc[k]) for k in structures]).reshape(-1, 3, 3)
        periodic = torch.from_numpy(np.array([self.pbc[k] for k in structures], dtype=bool)).to(device)
        lattices = torch.where(periodic.all(1)[:, None, None], atoms.cells, torch.from_numpy(cells).to(device))
        rows = torch.from_numpy(np.flatnonzero(sound)).to(device)
        first = self.sums[0]
        n_bins = first.bins + first.beyond
        reach = np.full(int(sound.sum()), n_bins * first.width)
        edges, images = find_pairs(
            atoms.positions[taken], sizes[sound], lattices[rows], periodic[rows], reach, most=128
        )  # fmt: skip
        i, j = taken[edges]
        of = atoms.batch.index_select(0, i)
        vectors = atoms.positions.index_select(0, j) - atoms.positions.index_select(0, i)
        vectors += translations(images, lattices, of)
        distances = torch.linalg.vector_norm(vectors, dim=1)
        # species and their number, and where the counts of a structure begin
        species = torch.from_numpy(np.concatenate([self.sums[k].species for k in structures])).to(device)
        m = np.array([len(self.sums[k].elements) for k in structures])
        table = torch.from_numpy(np.stack([m, self.first[places]])).to(device)
        elements, begin = table.index_select(1, of)
        pair = species.index_select(0, i) * elements + species.index_select(0, j)
        index = begin + pair * n_bins + (distances / first.width).to(torch.int64).clamp(max=n_bins - 1)
        found = torch.zeros_like(counts).index_add_(0, index, (distances < n_bins * first.width).to(torch.int64))
        volume = np.zeros(len(self.sums))
        volume[places[sound]] = np.where(whole_period, volumes, np.nan)[sound]
        one, inverse = np.zeros(len(self.sums), dtype=np.int64), np.zeros(len(self.sums))
        one[places[sound]] = 1
        inverse[places[sound]] = 1 / volume[places[sound]]
        spread = np.repeat(np.nan_to_num(volume), np.diff(self.first))
        self.device_sums = (
            counts + found,
            volume_counts + found * torch.from_numpy(spread).to(device),
            frames + torch.from_numpy(one).to(device),
            inverse_volume + torch.from_numpy(inverse).to(device),
        )

    def _fetch(self) -> None:
        """Add what the device has counted to the sums."""
        if self.device_sums is None:
            return
        counts, volume_counts, frames, inverse_volume = (t.cpu().numpy() for t in self.device_sums)
        self.device_sums = None
        for k, sums in enumerate(self.sums):
            mine = slice(self.first[k], self.first[k + 1])
            sums.counts = sums.counts + counts[mine].reshape(sums.counts.shape)
            sums.volume_counts = sums.volume_counts + volume_counts[mine].reshape(sums.counts.shape)
            sums.frames, sums.inverse_volume = sums.frames + int(frames[k]), sums.inverse_volume + inverse_volume[k]

    def state(self) -> dict[str, np.ndarray]:
        """All sums, as a few long arrays."""
        self._fetch()
        states = [sums.state() for sums in self.sums]
        return {name: np.concatenate([s[name].ravel() for s in states]) for name in RDFAccumulator.FIELDS}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Go on from :meth:`state` of the same structures."""
        at = dict.fromkeys(RDFAccumulator.FIELDS, 0)
        for sums in self.sums:
            state = {}
            for name, own in sums.state().items():
                state[name] = arrays[name][at[name] : at[name] + own.size].reshape(own.shape)
                at[name] += own.size
            sums.restore(state)

    def results(self) -> list[RDF]:
        """The radial distribution functions of each structure."""
        self._fetch()
        return [sums.result() for sums in self.sums]


class StoredRDFs(Record):
    """``rdf.json``: the average over all structures, and each of them, in order."""

    key: str
    average: RDF
    structures: list[NamedRDF]


def write_rdfs(out: Path, key: str, names: Sequence[str], results: Sequence[RDF]) -> None:
    """``rdf.json``: ``average`` over all structures, and ``structures`` by their names in order."""
    named = [NamedRDF(**{**dict(one), "structure_id": name}) for name, one in zip(names, results, strict=True)]
    content = StoredRDFs(key=key, average=average_rdfs(results), structures=named)
    write_atomically(out / RDFS, (json.dumps(content.plain()) + "\n").encode())


def read_rdfs(out: Path) -> StoredRDFs:
    """What :func:`write_rdfs` wrote.

    Raises DataError where there is none, or it is damaged.
    """
    try:
        return StoredRDFs.model_validate_json((out / RDFS).read_text())
    except (OSError, ValueError) as error:
        hint = "a run writes it where rdf_interval is set"
        raise DataError(f"{out / RDFS} holds no radial distribution functions ({error}); {hint}") from None
