"""One thin file for each command: its flags, one call, and how the result is shown.

No work is done here: the rooms below do it and know nothing of commands.
"""
