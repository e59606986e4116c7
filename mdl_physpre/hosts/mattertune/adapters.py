"""Adapters (LoRA) in the network: how they become part of its weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mdl_physpre.errors import ConfigError
from mdl_physpre.potentials.backbones.m3gnet.layers import Layer


def adapted_layers(network: nn.Module) -> dict[str, Layer]:
    """Layers with an adapter, as peft puts it in place of their ``linear``, by name."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, Layer) and not isinstance(module.linear, nn.Linear)
    }


def check_adapters(network: nn.Module) -> None:
    """Raises ConfigError for a copy of a whole module (``modules_to_save``), which has no place in the checkpoint."""
    for name, module in network.named_modules():
        if hasattr(module, "modules_to_save") and hasattr(module, "original_module"):
            raise ConfigError(f"LoRA: modules_to_save names {name}, which cannot be merged; leave modules_to_save out")


@torch.no_grad()
def merged_state(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dictionary with W + ΔW in place of W and its adapters, under the names of a network without adapters."""
    merged = dict(state)
    for name, layer in adapted_layers(module).items():
        own = {key: merged.pop(key) for key in [*merged] if key.startswith(f"{name}.linear.")}
        training = layer.training
        layer.eval()  # without dropout
        merged[f"{name}.linear.weight"] = layer.weight.contiguous()
        if f"{name}.linear.base_layer.bias" in own:
            merged[f"{name}.linear.bias"] = layer.bias
        layer.train(training)
    return merged
