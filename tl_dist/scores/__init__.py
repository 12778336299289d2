"""Figures, their intervals, and predictions kept with them. Imports no framework."""
