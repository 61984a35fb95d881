"""What a training step reads: one batch of token rows with the target's states, live or from disk.

How rows are chosen is ``training.sampler``.
"""
