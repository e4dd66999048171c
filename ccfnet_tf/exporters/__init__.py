"""Exports trained networks to verified files that need neither this package nor Keras."""
