"""Trained networks as files that need neither this package nor Keras, each verified."""
