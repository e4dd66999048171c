"""One small reader a layout: files in, samples out. No TensorFlow here."""
