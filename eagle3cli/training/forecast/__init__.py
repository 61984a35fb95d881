"""What a training run or an evaluation takes of time and memory, before it starts and when memory ran out.

Nothing here trains.
"""
