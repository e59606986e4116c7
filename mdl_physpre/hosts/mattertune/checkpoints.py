"""MatterTune's models from its checkpoints, by the host's own classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mdl_physpre.errors import CheckpointError
from mdl_physpre.hosts.mattertune.plugin import register
from mdl_physpre.potentials.checkpoints.archive import read_archive


def load_host_model(path: str | Path, device: str = "cpu") -> Any:
    """The host's module in a checkpoint, of any backbone, in evaluation mode.

    Raises
    ------
    CheckpointError : no such file, no checkpoint of MatterTune, or one whose weights do not fit its configuration.
    HostError : MatterTune is missing or of another version.
    """
    register()
    import nshconfig
    from mattertune.backbones import ModelConfig

    content = read_archive(path, skip_objects=True)
    if not {"hyper_parameters", "state_dict"} <= content.keys() or "name" not in content["hyper_parameters"]:
        raise CheckpointError(f"{path}: no checkpoint of MatterTune; it lacks hyper_parameters or state_dict")
    try:
        config = nshconfig.TypeAdapter(ModelConfig).validate_python(dict(content["hyper_parameters"]))
        config.ensure_dependencies()
        model = config.create_model()
        model.load_state_dict(content["state_dict"])
    except (ValidationError, RuntimeError, ImportError) as error:
        raise CheckpointError(f"{path}: cannot be loaded: {' '.join(str(error).split())[:600]}") from error
    return model.to(device).eval()
