"""A run's model as a file for another runtime."""
