"""Keras callbacks of `fit`."""
