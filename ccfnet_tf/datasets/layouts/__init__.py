"""One small reader per layout: files in, samples out. No TensorFlow here."""
