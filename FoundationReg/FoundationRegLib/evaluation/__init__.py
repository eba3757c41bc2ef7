"""How good a transform is: overlap, distances, folding, similarity. May use: `core`, `images`, `numerics`."""
