"""The crystal graph convolutional network."""
