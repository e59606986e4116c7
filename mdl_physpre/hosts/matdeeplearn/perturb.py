"""The perturbation (Algorithm 1) as a transform of MatDeepLearn, with labels of a teacher."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_numbers
from torch import Tensor

from mdl_physpre.errors import ConfigError, DataError
from mdl_physpre.pretraining.labelling import LabelFailure, compute_labels
from mdl_physpre.pretraining.perturbation import PerturbationSettings, PerturbedParent
from mdl_physpre.pretraining.teacher import resolve_teacher
from mdl_physpre.structures.labels import Labels, largest_force

BATCH = 32
"""Structures that a teacher labels at a time."""
EDGE_FIELDS = ("edge_index", "edge_weight", "edge_attr", "edge_vec", "cell_offsets", "complete_index")


class Perturb:
    """Pull close pairs together and displace random sites; label the result by a teacher.

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
        made anew. From the second epoch on it labels up to 32 structures at a time.
    keep_labels : leave the labels as they are, where nothing is learnt from them; those of the unperturbed structure
        are wrong for the perturbed one. Without a teacher this has to be said.
    energy_reference : eV by element, taken off the teacher's energies.
    seed : of the random numbers.
    split : ``train``, only what the network learns from: MatDeepLearn validates and predicts without gradients, and
        gets structures as they are then. ``all``, every access; in preprocessing, where MatDeepLearn does not tell
        which part a structure is of, there is nothing else.
    **settings : keys of :class:`mdl_physpre.pretraining.PerturbationSettings`.

    Raises
    ------
    ConfigError : unknown or wrong settings, a teacher that cannot be found; ``split: train`` in preprocessing.
    DataError, when called : edges that were computed in preprocessing, a structure that the teacher cannot label.
    """

    def __init__(
        self,
        teacher: Any = None,
        keep_labels: bool = False,
        energy_reference: Mapping[str, float] | None = None,
        seed: int = 0,
        split: str = "train",
        **settings: Any,
    ) -> None:
        self.settings = PerturbationSettings(**settings)
        if any(self.settings.strain):
            raise ConfigError("Perturb: strain changes cells, which this transform leaves alone; give positions alone")
        if keep_labels == (teacher is not None):
            raise ConfigError(
                "Perturb: give either a teacher, which labels, or keep_labels: True, where nothing is learnt from them"
            )
        if split not in ("train", "all"):
            raise ConfigError(f"Perturb: split is {split!r}; expected train or all")
        self.teacher = None if teacher is None else resolve_teacher(teacher)
        self.keep_labels = keep_labels
        self.reference = reference_table(energy_reference or {})
        self.seed, self.split = int(seed), split
        self.accesses: Counter[str] = Counter()
        self._known: dict[str, Atoms] = {}
        self._made: dict[str, _Draw] = {}
        self._originals: dict[int, Tensor] = {}

    def __call__(self, data: Any) -> Any:
        """The structure with new positions and labels: new tensors, or in preprocessing other values in the old."""
        preprocessing = isinstance(data.n_atoms, int)  # in a data set it is a tensor
        if preprocessing and self.split == "train":
            raise ConfigError(
                "Perturb: in preprocessing MatDeepLearn does not tell to which part a structure belongs; set "
                "otf_transform: True, or split: all in args, which perturbs validation and test too"
            )
        if self.split == "train" and not torch.is_grad_enabled():
            return data
        name = structure_name(data)
        stale = [field for field in EDGE_FIELDS if getattr(data, field, None) is not None]
        if stale:
            raise DataError(
                f"structure {name}: {stale[0]} belongs to the unperturbed structure; set preprocess_edges and "
                "preprocess_edge_features to False, and otf_edge_index and otf_edge_attr to True; CompleteEdges comes "
                "after this transform"
            )
        if preprocessing:  # a data set of one structure comes as if in preprocessing, again and again
            data.pos.copy_(self._originals.setdefault(data.pos.data_ptr(), data.pos.clone()))
        return self._put(data, self._drawn(name, atoms_of(data)), preprocessing)

    def _drawn(self, name: str, atoms: Atoms) -> _Draw:
        """The draw of this access, made now or together with that of another structure."""
        known = self._known.get(name)
        if known is None or not _same(known, atoms):
            known = self._known[name] = atoms
        made = self._made.pop(name, None)
        if made is None or made.parent.atoms is not known:
            waiting = [other for other in self._known if other != name and other not in self._made]
            for draw in self._make([name, *waiting[: BATCH - 1]]):
                self._made[draw.name] = draw
            made = self._made.pop(name)
        if isinstance(made.labels, str):
            raise DataError(f"structure {name}: {made.labels}; leave it out, or set max_force higher")
        return made

    def _make(self, names: Sequence[str]) -> list[_Draw]:
        """The next draw of each structure. One whose draws all fail the filters stays as it was."""
        worker = torch.utils.data.get_worker_info()
        draws = []
        for name in names:
            access = self.accesses[name]
            self.accesses[name] += 1
            if worker is not None:  # its counts begin anew in every epoch, its seed does not
                access += worker.seed % 2**31
            rng = np.random.default_rng([self.seed, zlib.crc32(name.encode()), access])
            parent = PerturbedParent(self._known[name], 0, self.settings)
            draws.append(_Draw(name, parent, int(rng.integers(self.settings.n_aug)), access))
        left = draws
        while left:
            for draw in left:
                draw.next(self.seed)
            for draw, labels in zip(left, self._labels([draw.atoms for draw in left])):
                draw.labels = labels
            left = [draw for draw in left if isinstance(draw.labels, str) and not draw.final]
        return draws

    def _labels(self, structures: Sequence[Atoms]) -> list[Labels | str]:
        """The teacher's labels, empty without a teacher; or why the draw is rejected."""
        if self.teacher is None:
            return [Labels() for _ in structures]
        found: list[Labels | str] = []
        limit = self.settings.max_force
        for labels in compute_labels(structures, self.teacher, workers=1, progress=False):
            if isinstance(labels, LabelFailure):
                found.append(f"the teacher has no label for it ({labels.reason})")
            elif limit is not None and largest_force(labels) > limit:
                found.append(f"a force beyond {limit} eV/Å")
            else:
                found.append(labels)
        return found

    def _put(self, data: Any, draw: _Draw, preprocessing: bool) -> Any:
        atoms, labels = draw.atoms, draw.labels
        assert isinstance(labels, Labels)
        if atoms.pbc.any():
            atoms.wrap()  # MatDeepLearn looks for neighbours from where atoms are, not from where they would be
        wanted: dict[str, Any] = {"pos": atoms.positions}
        if not self.keep_labels:
            energy = np.nan if labels.energy is None else labels.energy - self.reference[atoms.numbers].sum()
            wanted |= {"y": energy, "forces": labels.forces, "stress": labels.stress}
        for key, value in wanted.items():
            old = getattr(data, key, None)
            if old is None:
                continue
            new = torch.full_like(old, torch.nan)
            if value is not None:
                new[...] = torch.as_tensor(value).reshape(old.shape if np.ndim(value) else ())
            if preprocessing:  # the host gives a copy of its structure and throws away what it gets back
                old.copy_(new)
            else:  # its tensors are parts of the data set
                data[key] = new
        return data

    def __repr__(self) -> str:
        return f"{type(self).__name__}(teacher={self.teacher!r}, {self.settings})"


@dataclass
class _Draw:
    """A draw of a structure, with its labels, or why it has none."""

    name: str
    parent: PerturbedParent
    round: int
    access: int
    attempt: int = -1
    final: bool = False
    labels: Labels | str = ""

    def __post_init__(self) -> None:
        self.atoms = self.parent.atoms

    def next(self, seed: int) -> None:
        """The next attempt; after the last of them, the structure as it was."""
        found, self.attempt = None, self.attempt + 1
        if self.attempt < self.parent.settings.max_attempts:
            found, self.attempt = self.parent.draw(self.round, self.attempt, seed, self.access)
        self.final = found is None
        self.atoms = self.parent.atoms.copy() if found is None else found


def _same(one: Atoms, other: Atoms) -> bool:
    return len(one) == len(other) and all(
        np.array_equal(a, b)
        for a, b in ((one.numbers, other.numbers), (one.positions, other.positions), (one.cell[:], other.cell[:]))
    )


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
