"""Losses, optimizer, distribution, checkpoints and the fit loop."""
