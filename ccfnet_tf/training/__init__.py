"""Training: optimizer, callbacks, distribution, checkpoints and cross-validation."""
