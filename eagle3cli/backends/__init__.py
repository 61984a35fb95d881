"""The frozen target, whatever runs it, and the batches of its states that training reads.

Nothing here knows of losses, commands or servers.
"""
