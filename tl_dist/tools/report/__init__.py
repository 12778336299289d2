"""Write what a run has learned as one page, from the files that runs keep, without a framework."""
