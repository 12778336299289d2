"""What a person sees: the live line of a run, and tables."""
