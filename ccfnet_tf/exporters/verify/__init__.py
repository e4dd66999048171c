"""Compares an exported file with Keras, in a process of its own."""
