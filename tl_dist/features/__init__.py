"""The outputs of a network's frozen part, computed once and stored, and classifiers that are fitted to them."""
