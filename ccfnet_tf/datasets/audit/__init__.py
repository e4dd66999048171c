"""Reads a whole data set: what is wrong, what it holds, which folds it makes."""
