"""Make the probabilities of a run honest."""
