"""The stage ``hidden-states``: passes of the target over rows, written to a store or compared with one.

The format of the store is ``data.hidden_states``.
"""
