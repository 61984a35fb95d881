"""The stage ``bench``: tasks, configurations, engines, and whether answers are right.

Engines decode in ``decode`` or behind ``client``.
"""
