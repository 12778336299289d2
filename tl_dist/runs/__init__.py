"""Store a run on disk: its directory, lock, heartbeats and checkpoints. Imports no framework."""
