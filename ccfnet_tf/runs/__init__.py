"""The run folder: configuration, checkpoints, metrics and other files of a run."""
