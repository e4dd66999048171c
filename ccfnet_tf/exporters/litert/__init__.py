"""Export to LiteRT (TFLite), for embedded GPUs and CPUs."""
