"""A development server with the faces of TensorFlow Serving."""
