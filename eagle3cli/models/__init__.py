"""The draft model: its modules, its config, and the folders that servers load.

Training and decoding are not here: they call its pieces.
"""
