"""Show the networks that a config may name."""
