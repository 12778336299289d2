"""Look at a data set, check it and divide it."""
