"""Distributed transfer learning of vision networks with TensorFlow and Keras.

One YAML file describes a run; the number of workers is invisible to the mathematics. This file imports nothing, so that
importing any part of the package costs only that part.
"""

__version__ = "0.1.0"
