"""Reading and writing files, and terminal output."""
