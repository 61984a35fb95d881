"""Chat templates: how messages become text, and where in that text the target's replies stand.

Token rows are made in ``tokens``; nothing here reads data sets.
"""
