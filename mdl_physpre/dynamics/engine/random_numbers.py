"""Random numbers of molecular dynamics: each structure has its own, whatever it is simulated with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from ase import units
from torch import Tensor

# (generator, steps, atoms) -> what the steps of one structure take, in their order: (steps, m, atoms, 3) for m
# tensors of a vector for each atom, (steps, m, 1) for m numbers of the structure
Draw = Callable[[np.random.Generator, int, int], np.ndarray]


def structure_generator(seed: int, index: int) -> np.random.Generator:
    """The random numbers of structure ``index``: they depend on (seed, index) and on nothing else."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index])))


def maxwell_boltzmann_velocities(masses: np.ndarray, temperature: float, generator: np.random.Generator) -> np.ndarray:
    """Velocities with momenta p = ξ sqrt(m kT), ξ standard normal, as ASE's; no motion is taken out.

    Parameters
    ----------
    masses : (n,), amu.
    temperature : K.

    Returns
    -------
    (n, 3), sqrt(eV/amu).
    """
    xi = generator.standard_normal((len(masses), 3))
    return xi * np.sqrt(masses * (units.kB * temperature))[:, None] / masses[:, None]


def normal_noise(generator: np.random.Generator, steps: int, n_atoms: int) -> np.ndarray:
    """ξ (n, 3), then η (n, 3), standard normal, at every step: the order of ASE's ``Langevin``."""
    return generator.standard_normal((steps, 2, n_atoms, 3))


def rescaling_noise(generator: np.random.Generator, steps: int, n_atoms: int) -> np.ndarray:
    """A standard normal number, then the sum of 3n − 1 squares of others, at every step: as ASE's ``Bussi``."""
    shape = 0.5 * (3 * n_atoms - 1)
    drawn = [(generator.standard_normal(), 2.0 * generator.standard_gamma(shape)) for _ in range(steps)]
    return np.array(drawn).reshape(steps, 2, 1)


class NoiseStreams:
    """Random numbers for each structure from its own generator, drawn for many steps at a time.

    The numbers are those of NumPy's generators, whatever device they are for. Where that is not the CPU, the next are
    drawn while the device works with the present ones.
    """

    LARGEST = 4_000_000  # numbers held at once
    LONGEST = 64  # steps drawn at once

    def __init__(
        self,
        generators: list[np.random.Generator],
        n_atoms: list[int],
        device: torch.device,
        draw: Draw = normal_noise,
    ) -> None:
        self.generators, self.n_atoms, self.device, self.draw = generators, n_atoms, device, draw
        # fixed by the structures at the start, so that a continued run draws at the same steps
        self.length = int(max(1, min(self.LONGEST, self.LARGEST // max(1, 6 * sum(n_atoms)))))
        self.used = self.length
        self.start_states: list[Mapping[str, Any]] = []
        self.block: Tensor | None = None
        self.drawer = None if device.type == "cpu" else ThreadPoolExecutor(1, "mdl_physpre-noise")
        self.coming: Future[tuple[list[Any], np.ndarray]] | None = None

    def _numbers(self) -> tuple[list[Mapping[str, Any]], np.ndarray]:
        """The numbers of the next steps, and the states of the generators before them."""
        states = [g.bit_generator.state for g in self.generators]
        pieces = [self.draw(g, self.length, n) for g, n in zip(self.generators, self.n_atoms, strict=True)]
        return states, np.concatenate(pieces, axis=2)

    def _draw(self) -> None:
        self.start_states, numbers = self._numbers() if self.coming is None else self.coming.result()
        self.block = torch.from_numpy(numbers).to(self.device)
        self.used = 0
        self.coming = None if self.drawer is None else self.drawer.submit(self._numbers)

    @property
    def used_up(self) -> bool:
        """Whether the next step needs numbers that have not been drawn yet."""
        return self.used >= self.length

    def prepare(self) -> None:
        """Draw the numbers of the next steps if there are none left."""
        if self.used_up:
            self._draw()

    def next(self) -> tuple[Tensor, ...]:
        """The numbers of the next step: tensors with rows for all atoms, or for all structures."""
        self.prepare()
        assert self.block is not None
        numbers = self.block[self.used]
        self.used += 1
        return tuple(numbers)

    def keep(self, structures: list[int], atoms: Tensor) -> None:
        """Go on with some structures only; ``atoms`` holds the indices of their atoms."""
        coming = None if self.coming is None else self.coming.result()  # nobody else uses the generators from here on
        self.generators = [self.generators[k] for k in structures]
        self.n_atoms = [self.n_atoms[k] for k in structures]
        if self.start_states:
            self.start_states = [self.start_states[k] for k in structures]
        if self.block is not None:
            rows = atoms if self.block.dim() == 4 else torch.tensor(structures, dtype=torch.int64, device=self.device)
            self.block = self.block.index_select(2, rows)
            if coming is not None:
                states, numbers = coming
                self.coming = Future()
                self.coming.set_result(([states[k] for k in structures], numbers[:, :, rows.cpu().numpy()]))

    def state(self) -> dict[str, Any]:
        """Everything needed to go on, JSON-able: states before the present block, and the steps taken from it."""
        drawn = bool(self.start_states)
        states = self.start_states if drawn else [g.bit_generator.state for g in self.generators]
        return {"length": self.length, "used": self.used, "drawn": drawn, "states": states}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state`, with the same structures."""
        for generator, stored in zip(self.generators, state["states"], strict=True):
            generator.bit_generator.state = stored
        self.length, self.coming = state["length"], None
        if state["drawn"]:
            self._draw()
        self.used = state["used"]
