"""Rows out of files and hubs: formats, presets, and the sources that people name.

What becomes of a row is decided in ``prepare``.
"""
