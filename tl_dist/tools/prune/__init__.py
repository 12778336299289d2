"""Make a smaller network from a trained run."""
