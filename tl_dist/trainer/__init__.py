"""Run one worker process, from its run directory to its exit code; start reading at `attempt`."""
