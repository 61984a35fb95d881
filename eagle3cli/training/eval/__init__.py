"""Held-out acceptance of a draft: simulated decoding on text that the target wrote.

Real decoding is ``serving.decode``.
"""
