"""How the workers of a run find each other, and who is kept out. Imports no framework."""
