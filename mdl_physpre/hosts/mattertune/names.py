"""The names of MatterTune that the plugin uses, since when it has them, and whether the installed version does."""

from __future__ import annotations

from importlib import import_module

from mdl_physpre.hosts.locate import HOSTS, HostError, require_installed

NAMES = {
    "registry": {"backbone_registry": "2024-11-03", "data_registry": "2024-11-03"},
    "recipes.base": {"RecipeConfigBase": "2024-12-02", "recipe_registry": "2024-12-18"},
    "finetune.base": {"FinetuneModuleBase": "2024-09-27", "FinetuneModuleBaseConfig": "2024-09-27"},
    "finetune.properties": {
        "EnergyPropertyConfig": "2024-10-28",
        "ForcesPropertyConfig": "2024-10-30",
        "StressesPropertyConfig": "2024-10-30",
    },
    "normalization": {"NormalizationContext": "2024-11-14"},
    "backbones": {"ModelConfig": "2024-11-27"},
    "callbacks.model_checkpoint": {"ModelCheckpointConfig": "2024-11-14"},
    "loggers": {"CSVLoggerConfig": "2024-11-14"},
    "data": {"DatasetConfig": "2024-11-07", "DatasetConfigBase": "2024-11-03"},
    "data.datamodule": {"ManualSplitDataModuleConfig": "2024-11-07"},
    "main": {"MatterTuner": "2024-10-30", "MatterTunerConfig": "2024-10-30"},
}
"""By module, the date of the host's commit that brought each name."""

METHODS = {
    "apply_callable_to_backbone": "2024-12-02",
    "apply_pruning_message_passing": "2025-09-25",
    "atoms_to_data": "2024-10-30",
    "batch_to_labels": "2024-10-30",
    "collate_fn": "2024-09-11",
    "cpu_data_transform": "2024-10-28",
    "create_model": "2024-10-30",
    "create_normalization_context_from_batch": "2024-11-14",
    "get_connectivity_from_atoms": "2025-03-26",
    "get_connectivity_from_data": "2025-03-26",
    "gpu_batch_transform": "2024-10-28",
    "hparams_cls": "2024-11-04",
    "model_forward": "2024-10-30",
    "model_forward_context": "2024-09-19",
    "model_forward_partition": "2025-09-24",
    "output_head_parameters": "2024-10-30",
    "pretrained_backbone_parameters": "2024-10-30",
    "requires_disabled_inference_mode": "2024-11-04",
}
"""The abstract methods of the host's module, all of which the backbone defines."""

TESTED = "commit 8e1a57e of 2025-12-04"


def require_host() -> None:
    """Import the host and look for every name that is used.

    Raises
    ------
    HostError : it is not installed, cannot be imported, or lacks names, which are listed with the date since when it
        has them.
    """
    require_installed(HOSTS["mattertune"])
    missing = missing_names()
    if missing:
        raise HostError(
            f"the installed MatterTune does not fit: {'; '.join(missing)}. The version that works is {TESTED}"
        )


def missing_names() -> list[str]:
    """What the importable host lacks, a few words each.

    Raises HostError where it cannot be imported at all.
    """
    try:
        import_module("mattertune")
    except Exception as error:  # its requirements fail in many ways: ImportError, AttributeError, pydantic's own
        raise HostError(f"MatterTune cannot be imported: {_reason(error)}") from error
    missing = []
    for module, names in NAMES.items():
        try:
            found = import_module(f"mattertune.{module}")
        except ImportError as error:
            missing.append(f"mattertune.{module} cannot be imported ({error})")
            continue
        missing += [
            f"mattertune.{module}.{name} is missing (there since {since})"
            for name, since in names.items()
            if not hasattr(found, name)
        ]
    if missing:
        return missing
    base = import_module("mattertune.finetune.base").FinetuneModuleBase
    missing += [
        f"FinetuneModuleBase.{name} is missing (there since {since})"
        for name, since in METHODS.items()
        if not hasattr(base, name)
    ]
    unknown = sorted(set(base.__abstractmethods__) - set(METHODS))
    return missing + [f"FinetuneModuleBase.{name} is new, and the backbone does not define it" for name in unknown]


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    hint = ""
    if isinstance(error, ModuleNotFoundError) and error.name:
        hint = f"; pip install {error.name.replace('_', '-')}"
    elif "nshconfig" in text and "Registry" in text:
        hint = "; pip install 'nshconfig[extra]==0.56.0'"
    return f"{type(error).__name__}: {text}{hint}"
