"""Test whether two runs differ."""
