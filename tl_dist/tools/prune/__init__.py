"""A smaller network from a trained run."""
