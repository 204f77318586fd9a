"""How sharp is the loss around these weights? One file for each family of measures."""
