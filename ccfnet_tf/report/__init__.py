"""A data set on the screen and on paper: tables, a figure, a sheet of samples."""
