"""A backbone with a head, and what its layers compute in."""
