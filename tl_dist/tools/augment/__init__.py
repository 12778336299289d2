"""See what augmentations do to images."""
