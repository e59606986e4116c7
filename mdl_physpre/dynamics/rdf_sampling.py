"""Radial distribution functions taken while structures are simulated: one accumulator for each, one file for all."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from mdl_physpre.analysis.rdf import RDFAccumulator, average_rdfs, plain_rdf
from mdl_physpre.dynamics.settings import DynamicsSettings
from mdl_physpre.dynamics.storage import RDFS, write_atomically
from mdl_physpre.errors import DataError

logger = logging.getLogger(__name__)


class RDFSampler:
    """Accumulators of all structures of a run, by their places in its list."""

    def __init__(self, settings: DynamicsSettings, structures: Sequence[Atoms]) -> None:
        self.settings, self.pbc = settings, [np.array(a.pbc) for a in structures]
        self.sums = [
            RDFAccumulator(a.numbers, settings.rdf_r_max, settings.rdf_bins, settings.rdf_smoothing) for a in structures
        ]

    def due(self, step: int) -> bool:
        """Whether this step is sampled."""
        s = self.settings
        return step >= s.rdf_start and step % s.rdf_interval == 0

    def add(self, k: int, positions: np.ndarray, cell: np.ndarray) -> None:
        """Take a frame of structure ``k``; one without distances (a collapsed cell) is left out."""
        try:
            self.sums[k].add(positions, cell, self.pbc[k])
        except DataError as error:
            logger.debug("structure %d: %s", k, error)

    def state(self) -> dict[str, np.ndarray]:
        """All sums, as a few long arrays."""
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

    def results(self) -> list[dict[str, Any]]:
        """The radial distribution functions of each structure."""
        return [sums.result() for sums in self.sums]


def write_rdfs(out: Path, key: str, names: Sequence[str], results: Sequence[Mapping[str, Any]]) -> None:
    """``rdf.json``: ``average`` over all structures, and ``structures`` by their names in order."""
    content = {
        "key": key,
        "average": plain_rdf(average_rdfs(results)),
        "structures": [{**plain_rdf(r), "structure_id": n} for n, r in zip(names, results, strict=True)],
    }
    write_atomically(out / RDFS, (json.dumps(content) + "\n").encode())


def read_rdfs(out: Path) -> dict[str, Any]:
    """What :func:`write_rdfs` wrote; results hold lists in place of arrays.

    Raises DataError where there is none, or it is damaged.
    """
    try:
        return json.loads((out / RDFS).read_text())
    except (OSError, ValueError) as error:
        hint = "a run writes it where rdf_interval is set"
        raise DataError(f"{out / RDFS} holds no radial distribution functions ({error}); {hint}") from None
