"""Cached feature sets: computed, listed and removed."""
