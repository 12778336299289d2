"""Let the workers of a run find each other, and keep others out. Imports no framework."""
