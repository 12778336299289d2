"""Search for the best classifier on cached features."""
