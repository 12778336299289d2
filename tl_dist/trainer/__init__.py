"""One process of a run, from its run directory to its exit code; `attempt` tells the story."""
