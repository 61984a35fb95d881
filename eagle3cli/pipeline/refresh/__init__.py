"""``eagle3 refresh``: a served draft trained on from its traffic, judged, and put in its place or not.

What a stage does is its command's business; how logs become rows is that of ``data/traffic``.
"""
