"""A target's stored weights: its files, and what the numbers of a quantised one mean.

Here are tensors by name. Models that hold them, heads and layers are one floor up.
"""
