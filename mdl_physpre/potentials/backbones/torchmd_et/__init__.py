"""TorchMD-NET's equivariant transformer."""
