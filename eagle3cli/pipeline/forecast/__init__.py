"""What every stage of a run will take, from its settings alone: rows, tokens, disk, memory, minutes, each a range.

Nothing here runs a stage.
"""
