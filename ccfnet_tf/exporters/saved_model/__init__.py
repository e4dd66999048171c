"""SavedModel, for TF Serving."""
