"""A development server with the APIs of TensorFlow Serving."""
