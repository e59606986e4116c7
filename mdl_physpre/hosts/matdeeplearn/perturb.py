"""The perturbation (Algorithm 1) as a transform of MatDeepLearn, with labels of a teacher."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_numbers

from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.pretraining.labelling import LabelFailure, compute_labels
from mdl_physpre.pretraining.perturbation import PerturbationSettings, PerturbedParent
from mdl_physpre.pretraining.teacher import resolve_teacher
from mdl_physpre.structures.labels import Labels, largest_force

EDGE_FIELDS = ("edge_index", "edge_weight", "edge_attr", "edge_vec", "cell_offsets")


class Perturb:
    """Pull close pairs together and displace random sites; with a teacher, label the result.

    In MatDeepLearn's section ``dataset``::

        transforms:
          - name: mdl_physpre.hosts.matdeeplearn.Perturb    # or physpre_perturb, once the plugin is loaded
            otf_transform: True                             # anew at every access; False: once, in preprocessing
            args: {pull: [1.0, 0.0], perturb: [1.0, 0.0], n_pairs: 2, n_sites: 5, n_aug: 5, seed: 0, teacher: eam.pt}

    Each access draws one of the ``n_aug`` strengths at random. What is drawn depends on ``seed``, the structure and
    the number of the access, and in the processes of a loader (``num_workers``) on the seed of the process.

    Parameters
    ----------
    teacher : as in :func:`mdl_physpre.label`; it sets ``y``, ``forces`` and ``stress``. Draws beyond ``max_force`` are
        made anew. Without one, ``y``, ``forces`` and ``stress`` become NaN, unless ``keep_labels``: those of the
        unperturbed structure are wrong for the perturbed one.
    keep_labels : leave the labels as they are, where nothing is learnt from them.
    energy_reference : eV by element, taken off the teacher's energies.
    seed : of the random numbers.
    **settings : keys of :class:`mdl_physpre.pretraining.PerturbationSettings`.

    Raises
    ------
    ConfigError : unknown or wrong settings, a teacher that cannot be found.
    DataError, when called : edges that were computed in preprocessing, a structure that the teacher cannot label.
    """

    def __init__(
        self,
        teacher: Any = None,
        keep_labels: bool = False,
        energy_reference: Mapping[str, float] | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        self.settings = PerturbationSettings(**settings)
        if keep_labels and teacher is not None:
            raise ConfigError("Perturb: give either a teacher, which labels, or keep_labels")
        self.teacher = None if teacher is None else resolve_teacher(teacher)
        self.keep_labels = keep_labels
        self.reference = reference_table(energy_reference or {})
        self.seed = int(seed)
        self.accesses: Counter[str] = Counter()

    def __call__(self, data: Any) -> Any:
        """The structure with new positions and labels, in place."""
        name = structure_name(data)
        stale = [field for field in EDGE_FIELDS if getattr(data, field, None) is not None]
        if stale:
            raise DataError(
                f"structure {name}: {stale[0]} belongs to the unperturbed structure; set preprocess_edges and "
                "preprocess_edge_features to False, and otf_edge_index and otf_edge_attr to True"
            )
        atoms = atoms_of(data)
        access = self.accesses[name]
        self.accesses[name] += 1
        worker = torch.utils.data.get_worker_info()
        if worker is not None:  # its counts begin anew in every epoch, its seed does not
            access += worker.seed % 2**31
        rng = np.random.default_rng([self.seed, zlib.crc32(name.encode()), access])
        parent = PerturbedParent(atoms, 0, self.settings)
        round_ = int(rng.integers(self.settings.n_aug))
        attempt = 0
        while attempt < self.settings.max_attempts:
            drawn, attempt = parent.draw(round_, attempt, self.seed, access)
            if drawn is None:
                break
            labels = self._labels(drawn)
            if labels is not None:
                return self._put(data, drawn, labels)
            attempt += 1
        labels = self._labels(atoms)  # no draw passes the filters: the structure as it was
        if labels is None:
            raise DataError(
                f"structure {name}: the teacher has no label for it, or a force beyond {self.settings.max_force} eV/Å; "
                "leave it out, or set max_force higher"
            )
        return self._put(data, atoms, labels)

    def _labels(self, atoms: Atoms) -> Labels | None:
        """The teacher's labels, empty without a teacher; None where the draw is rejected."""
        if self.teacher is None:
            return Labels()
        found = compute_labels([atoms], self.teacher, workers=1, progress=False)[0]
        if isinstance(found, LabelFailure):
            return None
        limit = self.settings.max_force
        return None if limit is not None and largest_force(found) > limit else found

    def _put(self, data: Any, atoms: Atoms, labels: Labels) -> Any:
        like = data.pos
        if atoms.pbc.any():
            atoms.wrap()  # MatDeepLearn looks for neighbours from where atoms are, not from where they would be
        data.pos = torch.as_tensor(atoms.positions).to(like)
        if self.keep_labels:
            return data
        wanted = {"forces": labels.forces, "stress": labels.stress}
        energy = np.nan if labels.energy is None else labels.energy - self.reference[atoms.numbers].sum()
        if getattr(data, "y", None) is not None:
            data.y = torch.full_like(data.y, float(energy))
        for key, value in wanted.items():
            if getattr(data, key, None) is not None:
                shape = data[key].shape
                new = torch.full(shape, torch.nan) if value is None else torch.as_tensor(value).reshape(shape)
                data[key] = new.to(like)
        return data

    def __repr__(self) -> str:
        return f"{type(self).__name__}(teacher={self.teacher!r}, {self.settings})"


def structure_name(data: Any) -> str:
    """The name of a structure of MatDeepLearn, which keeps it in lists of one."""
    name = data.structure_id
    while isinstance(name, Sequence) and not isinstance(name, str):
        name = name[0]
    return str(name)


def atoms_of(data: Any) -> Atoms:
    """A structure of MatDeepLearn as ``ase.Atoms``: periodic in all directions where it has a cell."""
    cell = data.cell.detach().double().reshape(3, 3).cpu().numpy()
    atoms = Atoms(data.z.cpu().numpy(), data.pos.detach().double().cpu().numpy(), cell=cell, pbc=bool(cell.any()))
    atoms.info["structure_id"] = structure_name(data)
    return atoms


def reference_table(energies: Mapping[str, float]) -> np.ndarray:
    """Energies by symbol as a table by atomic number, (119,), eV. Raises ConfigError for an unknown element."""
    table = np.zeros(119)
    for symbol, energy in energies.items():
        if symbol not in atomic_numbers:
            raise ConfigError(f"energy_reference: {symbol!r} is no element")
        table[atomic_numbers[symbol]] = float(energy)
    return table
