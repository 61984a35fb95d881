"""What ``eagle3 doctor`` finds out: one finding a check, each problem with the command that mends it.

How findings are shown is ``commands.doctor``.
"""
