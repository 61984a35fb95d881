"""The stage ``regenerate``: replies rewritten by the target, row by row, resumable.

How tokens are generated is ``decode`` or a server's own business.
"""
