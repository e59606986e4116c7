"""Adapters (LoRA) in the network: where they work, and how they become part of the weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mdl_physpre.errors import ConfigError

TARGETS = (
    "graph_conv.*.gated_mlp_atom.*.linear, graph_conv.*.gated_mlp_edge.*.linear, graph_conv.*.edge_layer_*.linear, "
    "graph_conv.*.three_body.*.linear, final.*.linear"
)
"""Layers that may have an adapter; target_modules: [linear] names them and the two encoders, a regular expression
such as ``(graph_conv|final).*linear`` leaves those out."""
WITHOUT = ("edge_encoder.", "atom_embedding.")


def adapted_layers(network: nn.Module) -> dict[str, Any]:
    """Layers with an adapter, by name, as peft puts them there."""
    return {
        name: module
        for name, module in network.named_modules()
        if hasattr(module, "base_layer") and hasattr(module, "get_delta_weight")
    }


def check_adapters(network: nn.Module) -> None:
    """Raises ConfigError where a layer has an adapter that the network would not notice, or cannot merge."""
    for name, layer in adapted_layers(network).items():
        if name.startswith(WITHOUT):
            raise ConfigError(
                f"LoRA: {name} reads its matrix directly and would not notice an adapter. Layers that can have one: "
                f"{TARGETS}. In a configuration: target_modules: '(graph_conv|final).*linear'"
            )
        if any(getattr(layer, "use_dora", {}).values()):
            raise ConfigError(f"LoRA: {name} has a DoRA adapter, which is no sum of weights; set use_dora: false")


def merged_state(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dictionary with W + ΔW in place of W and its adapters, under the names of a network without adapters."""
    merged = dict(state)
    for name, layer in adapted_layers(module).items():
        for key in [k for k in merged if k.startswith(f"{name}.")]:
            value = merged.pop(key)
            if key.startswith(f"{name}.base_layer."):
                merged[f"{name}.{key.removeprefix(f'{name}.base_layer.')}"] = value.detach().clone()
        weight = merged[f"{name}.weight"]
        for adapter in layer.active_adapters:
            weight += layer.get_delta_weight(adapter).detach().to(weight)
    return merged
