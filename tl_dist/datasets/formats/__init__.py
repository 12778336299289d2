"""Formats of data sets: one file each, looked up by name in the registry."""
