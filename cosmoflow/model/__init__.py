"""Networks that map density to velocity, and how they are fitted. Torch only."""
