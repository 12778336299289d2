"""Check whether this installation works."""
