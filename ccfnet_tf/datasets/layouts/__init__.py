"""One reader per data set layout.

Each module has `signs(root)`, which recognises the layout, and `read(data, root, seed)`, which
returns a `Listing` of the splits. Importing a reader does not import TensorFlow.
"""
