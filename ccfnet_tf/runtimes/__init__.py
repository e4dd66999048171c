"""What was exported, opened again: every format answers through one protocol."""
