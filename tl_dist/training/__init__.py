"""Compute a run: a step, the chunk of steps in a graph, the loop. Knows no file and no directory."""
