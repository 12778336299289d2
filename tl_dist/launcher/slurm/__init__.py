"""Run under Slurm: submit a batch script, read the job from its variables, and drive one attempt inside the job."""
