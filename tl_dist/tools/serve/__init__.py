"""`tl-dist serve`: one process that answers HTTP requests with a model, started by `python -m`."""
