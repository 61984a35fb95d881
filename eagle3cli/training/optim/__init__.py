"""The optimiser and the learning rate.

When a step is taken is decided in ``training.trainer``.
"""
