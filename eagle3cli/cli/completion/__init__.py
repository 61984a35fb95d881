"""What the shells offer at the Tab key: a half-typed line taken apart, the values of its flags, and the scripts.

Nothing here imports torch, and nothing runs a command.
"""
