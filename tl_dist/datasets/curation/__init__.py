"""What people do with a data set before they train on it: look at it, prove it whole, divide it. No TensorFlow."""
