"""The network: input geometry, backbones, heads, losses, and the Keras model."""
