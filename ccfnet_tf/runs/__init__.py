"""The run folder: configuration, checkpoints, and files that people read."""
