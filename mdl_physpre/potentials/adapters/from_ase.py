"""Any ASE calculator as a potential, so that it goes wherever a potential goes: dynamics, errors, labels, checks."""

from __future__ import annotations

import hashlib
import io
import pickle
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, PropertyNotImplementedError
from torch import Tensor

from mdl_physpre.errors import CheckpointError, ConfigError, DataError
from mdl_physpre.potentials.base import Potential, Predictions
from mdl_physpre.structures.graph import AtomGraph
from mdl_physpre.structures.labels import as_stress_matrix
from mdl_physpre.structures.state import put_state, same_state, state_of

Calculator = Any  # ASE's protocol: implemented_properties and get_property; few calculators share a base class


class ForeignPotential(Potential):
    """A model of another package as a potential: it finds its own neighbours, and has no parameters here.

    ``cutoff`` is 0, and graphs have no edges.

    Parameters
    ----------
    built : the model.
    name : what identifies the model with all its settings. Stored results of a run are used again where the name
        is the same, so two models that differ need two names. Where ``None``, a hash of the model's state; a
        state that cannot be hashed is taken to be different every time.
    source : more that tells stored results apart and is not shown to people, such as a hash of the model's code.
    """

    cutoff = 0.0
    elements = None
    kind = "a model"

    def __init__(self, built: Any, name: str | None, source: str) -> None:
        super().__init__()
        cls = type(built)
        self.name = name if name is not None else f"{cls.__module__}.{cls.__qualname__} {fingerprint(built)}"
        self.source = source

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return self.name

    @property
    def identity(self) -> str:
        """Name and source: by what stored results are told apart."""
        return f"{self.name} {self.source}".rstrip()

    def get_extra_state(self) -> Tensor:
        """The identity as bytes: the state by which stored results tell potentials apart."""
        return torch.from_numpy(np.frombuffer(self.identity.encode(), dtype=np.uint8).copy())

    def hyperparameters(self) -> dict[str, Any]:
        """Raises CheckpointError: the model of another package is not stored in a checkpoint."""
        raise CheckpointError(f"{self.name} is {self.kind} and cannot be saved as a checkpoint; name it instead")


class CalculatorPotential(ForeignPotential):
    """Energies, forces and stress by an ASE calculator, one structure after another.

    E = ``get_potential_energy()``, F = ``get_forces()``, σ = ``get_stress(voigt=False)`` of atoms with the numbers,
    positions, cell and periodicity of the graph, and with ``info``, charges, magnetic moments, masses and tags of the
    structures it was made of, labels aside. What was computed for others of these is never used again. The calculator
    finds its own neighbours. There are no parameters to train.

    Parameters
    ----------
    calculator : an ASE calculator, or a callable without arguments that returns one. Give a callable where the
        potential is to be copied or sent to another process: each copy then builds its own calculator.
    name, source : of :class:`ForeignPotential`.

    Attributes
    ----------
    gives_stress : whether the calculator has stress at all.

    Raises
    ------
    ConfigError : the callable raises, or what it returns is no calculator.
    """

    kind = "an ASE calculator"

    def __init__(
        self, calculator: Calculator | Callable[[], Calculator], name: str | None = None, source: str = ""
    ) -> None:
        given = not isinstance(calculator, type) and hasattr(calculator, "get_property")
        factory: Callable[[], Calculator] = _Given(calculator) if given else calculator
        built = build_calculator(factory)
        super().__init__(built, name, source)
        self.factory = factory
        # in a list, so that a calculator that is a torch module is not taken for a part of this one
        self._built: list[Calculator] = [built]
        self.gives_stress = "stress" in getattr(built, "implemented_properties", ())

    @property
    def calculator(self) -> Calculator:
        """The calculator of this copy in this process."""
        if not self._built:
            self._built = [build_calculator(self.factory)]
        return self._built[0]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_built": []}

    def predictions(self, graph: AtomGraph, forces: bool = True, stress: bool = True) -> Predictions:
        """Energies (n_structures,) eV, float64; forces (n_atoms, 3) eV/Å; stress (n_structures, 3, 3) eV/Å³.

        Stress is NaN for a structure without a full periodic cell. Whatever the calculator raises is passed on.

        Raises
        ------
        DataError : stress of a periodic structure asked of a calculator that has none; results of a wrong shape.
        """
        try:
            with torch.inference_mode(False), torch.enable_grad():  # a calculator may differentiate a network
                return self._predictions(graph, forces, stress)
        except Exception:
            # what it had half done must not be taken for done with the next structure
            reset(self.calculator)
            raise

    def _predictions(self, graph: AtomGraph, forces: bool, stress: bool) -> Predictions:
        energies, all_forces, stresses = [], [], []
        for atoms in graph_structures(graph):
            attach(atoms, self.calculator)
            energies.append(float(np.asarray(atoms.get_potential_energy()).reshape(())))
            if forces:
                found = np.array(atoms.get_forces(apply_constraint=False), dtype=float)
                if found.shape != (len(atoms), 3):
                    raise DataError(f"{self.name} gives forces of shape {found.shape}; expected ({len(atoms)}, 3)")
                all_forces.append(found)
            if stress:
                stresses.append(self._stress(atoms))
        result = Predictions(torch.tensor(energies, dtype=torch.float64, device=graph.pos.device))
        if forces:
            result.forces = torch.from_numpy(np.concatenate([np.zeros((0, 3)), *all_forces])).to(graph.pos)
        if stress:
            result.stress = torch.from_numpy(np.array(stresses, dtype=float).reshape(-1, 3, 3)).to(graph.pos)
        return result

    def _stress(self, atoms: Atoms) -> np.ndarray:
        if not (atoms.pbc.all() and atoms.cell.rank == 3):
            return np.full((3, 3), np.nan)
        if self.gives_stress:
            try:
                return as_stress_matrix(atoms.get_stress(voigt=False))
            except (PropertyNotImplementedError, NotImplementedError):
                pass
        raise DataError(
            f"{self.name} gives no stress, which is asked for here; take a calculator that has it, or leave out what "
            "needs stress (a constant-pressure ensemble, errors of stress)"
        )


class _Given:
    """Hands out the one calculator that was given, which copies share."""

    def __init__(self, calculator: Calculator) -> None:
        self.calculator = calculator

    def __call__(self) -> Calculator:
        return self.calculator

    def __deepcopy__(self, memo: dict[int, Any]) -> _Given:
        return self


def build_calculator(factory: Callable[[], Calculator]) -> Calculator:
    """What ``factory`` returns. Raises ConfigError where it raises, or where that is no ASE calculator."""
    name = getattr(factory, "__name__", factory)
    if not callable(factory):
        raise ConfigError(
            f"found {type(factory).__name__} ({factory!r}), expected an ASE calculator or a callable that returns one"
        )
    try:
        calculator = factory()
    except Exception as error:
        raise ConfigError(f"{name} cannot be built: {type(error).__name__}: {error}") from error
    if isinstance(calculator, type) or not hasattr(calculator, "get_property"):
        what = f"the class {calculator.__name__}" if isinstance(calculator, type) else type(calculator).__name__
        raise ConfigError(f"{name} returned {what}, expected an ASE calculator")
    return calculator


def reset(calculator: Calculator) -> None:
    """Make a calculator, and those that it is made of, forget what it found."""
    waiting, seen = [calculator], set()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if hasattr(one, "reset"):
            one.reset()
        elif isinstance(one, BaseCalculator):
            one.atoms, one.results = None, {}
        held = [*vars(one).values()] if hasattr(one, "__dict__") else []
        held += [v for value in held if isinstance(value, (list, tuple)) for v in value]
        held += [v for value in held if isinstance(value, dict) for v in value.values()]
        # ASE's sums keep their calculators in a mixer
        waiting += [v for v in held if hasattr(v, "get_property") or hasattr(v, "calcs")]


def attach(atoms: Atoms, calculator: Calculator) -> None:
    """Give structures a calculator, which forgets what it found for another charge, spin, tag or the like.

    ASE itself compares elements, positions, cells, periodicity, initial charges and moments, and nothing else.
    """
    last = getattr(calculator, "atoms", None)
    if isinstance(last, Atoms) and not same_state(state_of(last), state_of(atoms)):
        reset(calculator)
    atoms.calc = calculator


def graph_structures(graph: AtomGraph) -> list[Atoms]:
    """The structures of a graph as ``ase.Atoms``: numbers, positions, cell, periodicity; ``info`` and arrays, labels
    aside, of the structures it was made of.
    """
    numbers, positions = graph.z.cpu().numpy(), graph.pos.detach().double().cpu().numpy()
    cells, pbc = graph.cell.detach().double().cpu().numpy(), graph.pbc.cpu().numpy()
    ends = np.cumsum(graph.n_atoms.cpu().numpy())
    starts = np.concatenate([[0], ends[:-1]])
    made = [
        Atoms(numbers[a:b], positions[a:b], cell=cells[k], pbc=pbc[k]) for k, (a, b) in enumerate(zip(starts, ends))
    ]
    for atoms, origin in zip(made, graph.structures or (), strict=graph.structures is not None):
        put_state(atoms, origin)
    return made


class _Pickler(pickle.Pickler):
    """Tensors by their content: their own pickles hold addresses in memory."""

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return NotImplemented
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return bytes, (f"{value.dtype}{tuple(value.shape)}".encode() + content,)


def fingerprint(thing: Any) -> str:
    """A hash of an object's state without ASE results; a random one where the state cannot be written down."""
    state = {key: value for key, value in vars(thing).items() if key not in ("atoms", "results")}
    try:
        buffer = io.BytesIO()
        _Pickler(buffer).dump(state)
    except Exception:
        return uuid.uuid4().hex[:16]
    return hashlib.sha256(buffer.getvalue()).hexdigest()[:16]
