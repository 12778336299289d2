"""Choose on the validation split by which rule a run decides on a class."""
