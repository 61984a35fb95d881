"""Experiment trackers: one thin file for each, and the thread that feeds them.

Which numbers there are is decided in ``training.trainer``.
"""
