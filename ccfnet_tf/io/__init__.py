"""Files and the terminal: images, MATLAB, JSON, atomic files, progress bars."""
