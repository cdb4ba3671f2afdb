"""Networks that map density to velocity, and their training. Torch only."""
