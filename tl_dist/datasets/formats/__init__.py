"""Where examples come from: one file a format, each looked up by its name in the registry."""
