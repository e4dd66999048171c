"""Keras callbacks used by `fit`."""
