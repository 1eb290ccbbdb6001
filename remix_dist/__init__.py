"""remix_dist: long-tailed image classification as a distributed service. Loads neither torch nor Ray."""

__version__ = "0.1.0"
