"""Servers started for a piece of work, watched, and stopped with all their processes.

What they are asked is ``client``.
"""
