"""From any source of conversations to token rows with masks, and to hidden states on disk.

No models run here: that is ``backends``. Rooms, top to bottom: inspect, hidden_states, tokens, prepare and traffic,
sources, chat and conversations.
"""
