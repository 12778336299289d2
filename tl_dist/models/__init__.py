"""Networks: a backbone with a head, its number formats, its weights, and its export to other runtimes."""
