"""Reports for people: tables for the terminal, figures, and sheets of images."""
