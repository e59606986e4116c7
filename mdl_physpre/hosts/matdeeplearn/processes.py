"""Training in several processes, which ``torchrun`` starts: the first prepares and writes, the others wait and read."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch.distributed as dist
from torch import nn

from mdl_physpre.errors import ConfigError
from mdl_physpre.training.ranks import Ranks

COMMAND = "torchrun --nproc_per_node=N main.py --config FILE"


def ranks_of(config: Mapping[str, Any]) -> Ranks:
    """The processes of a configuration of MatDeepLearn, joined where ``task.parallel`` says that there are several.

    Raises
    ------
    ConfigError : MatDeepLearn's own training in several processes is not mended; the processes were not started; there
        is nothing to train.
    """
    task = config.get("task") or {}
    if not task.get("parallel"):
        return Ranks()
    if task.get("run_mode") == "predict":
        raise ConfigError("task.parallel: predictions are made in one process; set it to False")
    try:
        parallel = import_module("matdeeplearn.common.parallel")
    except ModuleNotFoundError:
        raise ConfigError(
            "task.parallel: MatDeepLearn's training in several processes does not work as it is; physpre hosts patch "
            "matdeeplearn --parallel mends it, or set task.parallel to False"
        ) from None
    try:
        parallel.init_process_group()
    except RuntimeError as error:
        raise ConfigError(f"task.parallel: start with {COMMAND}, or set it to False ({error})") from None
    return Ranks(dist.get_world_size())


def bare(model: nn.Module) -> nn.Module:
    """The network itself, without what adds up gradients over processes."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
