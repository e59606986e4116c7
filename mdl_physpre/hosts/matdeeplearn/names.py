"""What of MatDeepLearn is used here, in one place, and since when MatDeepLearn has it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from mdl_physpre.hosts.locate import HOSTS, HostError, put_on_path, require_installed, version_of

HOST = HOSTS["matdeeplearn"]
EXTENSIONS = {"torch_scatter": "torch-scatter", "torch_sparse": "torch-sparse", "torch_cluster": "torch-cluster"}
"""Compiled packages that MatDeepLearn imports, and what pip calls them."""


class Need(NamedTuple):
    """A name in a module of MatDeepLearn, parameters that it must take, and the month since which its main has it."""

    module: str
    name: str
    since: str
    parameters: tuple[str, ...] = ()


NEEDS = (
    Need("matdeeplearn.common.registry", "registry", "2022-10"),
    Need("matdeeplearn.common.registry", "registry.register_model", "2022-10", ("name",)),
    Need("matdeeplearn.common.registry", "registry.register_trainer", "2022-10", ("name",)),
    Need("matdeeplearn.common.registry", "registry.register_loss", "2022-12", ("name",)),
    Need("matdeeplearn.common.registry", "registry.register_transform", "2023-02"),
    Need("matdeeplearn.common.registry", "registry.get_transform_class", "2023-02", ("name",)),
    Need("matdeeplearn.models.base_model", "BaseModel", "2022-10"),
    Need("matdeeplearn.models.base_model", "BaseModel.generate_graph", "2022-10", ("data", "cutoff_radius")),
    Need("matdeeplearn.preprocessor.processor", "process_data", "2022-10", ("dataset_config",)),
    Need("matdeeplearn.preprocessor.helpers", "generate_node_features", "2022-10", ("input_data", "n_neighbors")),
    Need("matdeeplearn.trainers.property_trainer", "PropertyTrainer", "2022-10"),
    Need("matdeeplearn.trainers.property_trainer", "PropertyTrainer.from_config", "2022-10", ("config",)),
    Need("matdeeplearn.trainers.property_trainer", "PropertyTrainer._load_dataset", "2022-10", ("dataset_config",)),
    Need("matdeeplearn.trainers.property_trainer", "PropertyTrainer._load_model", "2023-06", ("graph_config", "rank")),
    Need("matdeeplearn.trainers.property_trainer", "PropertyTrainer._load_optimizer", "2023-03", ("world_size",)),
    Need("matdeeplearn.trainers.property_trainer", "PropertyTrainer._load_scheduler", "2022-10", ("scheduler_config",)),
    Need("matdeeplearn.trainers.property_trainer", "PropertyTrainer._load_loss", "2022-12", ("loss_config",)),
    Need("matdeeplearn.trainers.property_trainer", "PropertyTrainer._load_dataloader", "2024-01", ("model_config",)),
    Need("matdeeplearn.trainers.property_trainer", "PropertyTrainer._forward", "2022-10"),
    Need("matdeeplearn.trainers.property_trainer", "PropertyTrainer._backward", "2024-01", ("loss", "index")),
    Need("matdeeplearn.trainers.property_trainer", "PropertyTrainer.predict", "2022-10", ("loader", "split")),
    Need("matdeeplearn.trainers.property_trainer", "PropertyTrainer.load_checkpoint", "2022-10"),
    Need("matdeeplearn.trainers.property_trainer", "PropertyTrainer.load_pre_trained_weights", "2023-06"),
)


@cache
def host() -> SimpleNamespace:
    """The names of MatDeepLearn that are used here: ``registry``, ``BaseModel``, ``PropertyTrainer``, ….

    Raises
    ------
    HostError : MatDeepLearn or a compiled package is not installed; a name that this version lacks, and since when
        MatDeepLearn has it.
    """
    problem = unregistered_path(require_installed(HOST) / HOST.package)
    if problem:
        raise HostError(problem)
    found = {need.name: _resolve(need) for need in NEEDS}
    return SimpleNamespace(**{name: value for name, value in found.items() if "." not in name})


def unregistered_path(package: Path) -> str | None:
    """Why MatDeepLearn registers none of its files in this folder, where it does not."""
    word = next((word for word in ("old", "in_progress") if word in str(package)), None)
    return word and (
        f"its folder {package} has {word!r} in its path, and MatDeepLearn registers no file of such a path: move the "
        "checkout"
    )


def missing_names(needs: Sequence[Need] = NEEDS) -> list[str]:
    """A sentence for each name that the installed MatDeepLearn lacks."""
    problems = []
    for need in needs:
        try:
            _resolve(need)
        except HostError as error:
            problems.append(str(error))
    return list(dict.fromkeys(problems))


def _resolve(need: Need) -> Any:
    try:
        found: Any = import_module(need.module)
    except ModuleNotFoundError as error:
        if error.name in EXTENSIONS:
            raise HostError(
                f"MatDeepLearn needs {EXTENSIONS[error.name]}, which is not installed: pip install "
                f"{' '.join(EXTENSIONS.values())} for your version of torch; wheels: https://data.pyg.org/whl"
            ) from error
        if str(error.name).partition(".")[0] == HOST.package:
            raise HostError(_lacks(need, f"the module {error.name}")) from error
        raise HostError(f"MatDeepLearn needs {error.name}, which is not installed: pip install {error.name}") from error
    for part in need.name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise HostError(_lacks(need, f"{need.module}.{need.name}")) from error
    if need.parameters:
        taken = inspect.signature(found).parameters
        for parameter in need.parameters:
            if parameter not in taken:
                raise HostError(_lacks(need, f"the argument {parameter!r} of {need.module}.{need.name}"))
    return found


def _lacks(need: Need, what: str) -> str:
    root = put_on_path(HOST)
    installed = f" ({version_of(HOST, root)}, in {root})" if root else ""
    return (
        f"this MatDeepLearn{installed} lacks {what}, which MatDeepLearn has since {need.since}: take its main branch "
        f"of 2024-03 or later from {HOST.source}"
    )
