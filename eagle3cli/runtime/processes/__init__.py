"""How a command becomes several processes, how they learn of each other, and how none outlives the others.

The ranks themselves and what they say to each other are in ``runtime.distributed``.
"""
