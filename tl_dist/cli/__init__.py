"""The command line: one file for a group of verbs, which parses, calls one function and shows what it returns."""
