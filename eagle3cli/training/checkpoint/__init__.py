"""Checkpoints of a run: written while it goes on, and read again.

Draft folders for servers are ``models``.
"""
