"""Show runs to the user: the live line, tables, and the console that they are printed on."""
