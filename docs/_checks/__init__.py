"""Running the blocks of the documentation."""
