"""The arithmetic of a run, which knows no file and no directory: a step, the chunk of steps in a graph, the loop."""
