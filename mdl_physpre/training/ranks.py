"""Several processes that train one network, a device each: ``devices`` of :class:`TrainingSettings`.

The loss of a batch is a ratio of sums over its labels. So each rank takes a share of the structures of every batch,
adds up the errors of its share, divides by the counts of the whole batch, and the gradients are added up over the
ranks: loss, norm of the gradient and step are those of one process, to rounding. Lightning's ``ddp`` strategy brings
devices and checkpoints; its wrapper, which averages gradients and hooks ``forward``, is left out.

The processes are those that Slurm started, where it started as many (``srun``); else this process starts the others.
What the host says to other hosts goes through gloo, what devices add up through NCCL (gloo on the CPU).
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from mdl_physpre.errors import ConfigError
from mdl_physpre.training.loss import LabelError
from mdl_physpre.utils.processes import Piece, beside

HOST = "127.0.0.1"
PATIENCE = timedelta(days=30)  # of ranks that wait while the first one labels, tests or simulates
_led = False  # whether the other ranks wait in `follow` for what this one does


class Ranks:
    """The processes that train together, seen from one of them; a single one where ``size`` is 1.

    rank : number of this process, from 0; the first writes the files.
    local : number of its device on this machine.
    per_machine : processes on each machine.
    """

    def __init__(self, size: int = 1) -> None:
        self.size = size
        self.rank = dist.get_rank() if size > 1 else 0
        self.per_machine = devices_per_machine(size)
        self.local = self.rank % self.per_machine
        self._devices: Any = None  # the group through which devices add up

    @property
    def first(self) -> bool:
        return self.rank == 0

    def shares(self, indices: Sequence[int], n_edges: np.ndarray) -> list[int]:
        """This rank's part of the structures of a batch: about as many edges as every other's; it may be empty."""
        if self.size == 1:
            return list(indices)
        parts: list[list[int]] = [[] for _ in range(self.size)]
        loads = [0.0] * self.size
        for place in sorted(range(len(indices)), key=lambda k: (-n_edges[indices[k]], k)):
            least = loads.index(min(loads))
            parts[least].append(place)
            loads[least] += 1.0 + n_edges[indices[place]]
        return [indices[place] for place in sorted(parts[self.rank])]

    def sum(self, values: Tensor) -> Tensor:
        """Values added up over the ranks, in place."""
        if self.size > 1:
            if values.device.type == "cuda" and self._devices is None:
                self._devices = dist.new_group(backend="nccl")
            dist.all_reduce(values, group=self._devices if values.device.type == "cuda" else None)
        return values

    def with_all_counts(self, errors: dict[str, LabelError]) -> dict[str, LabelError]:
        """Errors of this rank's share, with the counts of the whole batch."""
        if self.size == 1:
            return errors
        counts = self.sum(torch.stack([error.count for error in errors.values()]))
        return {label: replace(error, count=count) for (label, error), count in zip(errors.items(), counts)}

    def sum_gradients(self, parameters: Sequence[nn.Parameter], losses: Tensor) -> Tensor:
        """Add up the gradients, in place, and ``losses``, which are returned.

        A parameter that no rank has a gradient of keeps none: the optimiser leaves it alone.
        """
        if self.size == 1:
            return losses
        # which they are is the host's knowledge: the device is not waited for
        reached = self.sum(torch.tensor([float(p.grad is not None) for p in parameters])).tolist()
        used = [p for p, ranks in zip(parameters, reached) if ranks]
        parts = [losses, *(torch.zeros_like(p) if p.grad is None else p.grad for p in used)]
        summed = self.sum(torch.cat([part.detach().double().reshape(-1) for part in parts]))
        found: Sequence[Tensor] = summed.split([part.numel() for part in parts])
        for parameter, gradient in zip(used, found[1:]):
            parameter.grad = gradient.reshape(parameter.shape).to(parameter.dtype)
        return found[0].reshape(losses.shape)

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What ``make`` gives on the first rank, on every rank."""
        if self.size == 1:
            return make()
        held = [make() if self.first else None]
        dist.broadcast_object_list(held, src=0)
        return held[0]

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.size > 1:
            dist.barrier()

    def trainer_options(self, device: torch.device) -> dict[str, Any]:
        """Accelerator, devices, strategy and environment for Lightning's Trainer."""
        accelerator = "cpu" if device.type == "cpu" else "gpu"
        if self.size == 1:
            return {
                "accelerator": accelerator,
                "devices": 1 if device.type == "cpu" else [device.index],
                "plugins": [LightningEnvironment()],  # one process, under Slurm too
            }
        slurm = slurm_ranks() == self.size
        environment: ClusterEnvironment = SLURMEnvironment(auto_requeue=False) if slurm else _OneMachine(self)
        return {
            "accelerator": accelerator,
            "devices": self.per_machine,
            "num_nodes": self.size // self.per_machine,
            "strategy": _WithoutWrapper(timeout=PATIENCE),
            "plugins": [environment],
        }


class _WithoutWrapper(DDPStrategy):
    """Lightning's ``ddp``; gradients are added up in :meth:`Ranks.sum_gradients`."""

    def configure_ddp(self) -> None:
        pass


class _OneMachine(LightningEnvironment):
    """Tells Lightning of the processes on this machine, which are there already."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self._ranks = ranks

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def local_rank(self) -> int:
        return self._ranks.local

    def node_rank(self) -> int:
        return 0


def slurm_ranks() -> int:
    """How many processes Slurm started for this step; 1 where ``srun`` started none."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))  # SLURM_NTASKS is there in a batch script, too


def devices_per_machine(devices: int) -> int:
    """How many of the devices of a training are on one machine."""
    return devices // int(os.environ.get("SLURM_STEP_NUM_NODES", 1)) if slurm_ranks() > 1 else devices


@contextmanager
def training_ranks(devices: int, train: Callable[..., Any], arguments: tuple[Any, ...]) -> Iterator[Ranks]:
    """The processes of one training, of which this is one; the others call ``train(*arguments)``, too.

    Raises
    ------
    ConfigError : Slurm, or whoever else, started another number of processes; arguments that cannot be sent.
    PhyspreError : another process failed.
    """
    if devices == 1:
        yield Ranks()
    elif dist.is_initialized():
        if dist.get_world_size() != devices:
            raise ConfigError(f"devices is {devices}, and {dist.get_world_size()} processes are there; give as many")
        if _led:
            Ranks(devices).from_first(lambda: (train, arguments))
        yield Ranks(devices)
    elif slurm_ranks() > 1:
        _join_slurm(devices)
        yield Ranks(devices)
    else:
        with socket.socket() as free:
            free.bind((HOST, 0))
            port = free.getsockname()[1]
        others = [
            Piece(f"rank {k}", (k, devices, port, torch.get_num_threads(), train, arguments)) for k in range(1, devices)
        ]
        with beside(_rank, others):
            _join(0, devices, HOST, port)
            try:
                yield Ranks(devices)
            finally:
                dist.destroy_process_group()


def _rank(rank: int, size: int, port: int, threads: int, train: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """What the processes do that the first one started."""
    torch.set_num_threads(threads)
    _say_no_more()
    _join(rank, size, HOST, port)
    train(*arguments)
    dist.destroy_process_group()


@contextmanager
def leading(devices: int) -> Iterator[bool]:
    """Whether this process leads, in the block, those that Slurm started for a training on ``devices``.

    Those that do not lead take part, before the block, in every training that the leading process does in its block.
    Everywhere else one process leads and no other waits.

    Raises ConfigError where Slurm started another number of processes.
    """
    global _led
    if devices == 1 or slurm_ranks() == 1:
        yield True
        return
    _join_slurm(devices)
    ranks = Ranks(devices)
    try:
        if ranks.first:
            _led = True
            try:
                yield True
            finally:
                _led = False
                with suppress(Exception):  # whoever has failed is not there to hear that this was all
                    ranks.from_first(lambda: None)
        else:
            _say_no_more()
            while (task := ranks.from_first(lambda: None)) is not None:
                train, arguments = task
                train(*arguments)
            yield False
    finally:
        dist.destroy_process_group()


def _join_slurm(devices: int) -> None:
    if slurm_ranks() != devices:
        raise ConfigError(
            f"devices is {devices}, and Slurm started {slurm_ranks()} processes; start as many as there are devices: "
            f"srun --ntasks-per-node=N, N devices on each machine, {devices} together"
        )
    try:
        environment = SLURMEnvironment(auto_requeue=False)
    except RuntimeError as error:
        raise ConfigError(f"Slurm: {error}") from None
    _join(environment.global_rank(), devices, environment.main_address, environment.main_port)


def _join(rank: int, size: int, address: str, port: int) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://{address}:{port}", rank=rank, world_size=size, timeout=PATIENCE)


def _say_no_more() -> None:
    """The first rank tells what all of them do."""
    logging.getLogger("mdl_physpre").setLevel(logging.WARNING)
