"""Metric states that merge by addition, and the one pass that fills them."""
