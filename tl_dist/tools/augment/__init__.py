"""Preview what the augmentations of a config do to images."""
