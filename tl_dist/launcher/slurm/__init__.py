"""Slurm: the batch script, the job as its variables describe it, and what drives it from inside."""
