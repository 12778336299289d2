"""`tl-dist serve`: answer HTTP requests with a model, in one process started by `python -m`."""
