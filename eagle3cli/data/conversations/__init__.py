"""One conversation in one form: its messages, the layouts it may come in, and what to leave out.

Files are read in ``sources``; chat templates live in ``chat``.
"""
