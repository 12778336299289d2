"""Inspect, verify and split a data set, and write a first config for it."""
