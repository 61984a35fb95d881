"""The settings of every command, each field written once, and how they are read, checked and written.

Nothing here imports torch or does what the settings say.
"""
