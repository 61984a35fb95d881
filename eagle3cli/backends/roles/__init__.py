"""A target on ranks of its own: the queue of passes that draft ranks ask for, what a message holds, and both its ends.

How the ranks of a job meet is `runtime/processes/job.py`; what the target does in a pass is `backends/target`.
"""
