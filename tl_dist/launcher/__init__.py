"""Start workers, watch them, restart them. Importing it never imports TensorFlow."""
