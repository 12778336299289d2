"""What runs on the login node or beside the workers. Importing it never imports TensorFlow."""
