"""Runs the experiments behind docs/results.md, and writes its tables from the run folders."""
