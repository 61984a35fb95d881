"""Experiment trackers and the threads that feed them; ``services/`` has one thin file for each.

Which numbers there are is decided in ``training.trainer``.
"""
