"""Curate a data set before training: inspect, verify and divide it. No TensorFlow."""
