"""Every example predicted by models that have not seen it."""
