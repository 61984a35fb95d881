"""The stages ``prepare`` and ``merge``: every row read once, accounted for, and written.

No tokens here: see ``tokens``.
"""
