"""The frozen part of a network computed once: what is kept of it, in which views, and what that costs and saves."""
