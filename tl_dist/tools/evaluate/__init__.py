"""The figures of a checkpoint, on its own data set or another."""
