"""eagle3: train EAGLE-3 draft models, from a data set's name to a measured speed-up."""

__version__ = "0.1.0"
