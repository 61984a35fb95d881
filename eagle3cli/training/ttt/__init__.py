"""Training-time test: the unroll of the draft over its own states, its attention and its losses.

Nothing here knows of optimisers, ranks or files.
"""
