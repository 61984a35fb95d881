"""The command line: the table of commands, their flags made from the settings, and shell completion.

What a command does is not here: each is one file of ``commands``.
"""
