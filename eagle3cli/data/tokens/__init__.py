"""The stage ``cache``: conversations to token rows with masks, and the draft's vocabulary.

Chat templates are asked in ``chat``; hidden states live in ``hidden_states``.
"""
