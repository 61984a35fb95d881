"""What a draft's decoder layers are made of: norm, MLP, rotation, and the projections of both kinds of attention.

Who attends to what is the caller's; the layers themselves, and the shape legend, stand in ``models/draft.py``.
"""
