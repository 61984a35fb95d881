"""What the shells offer at the Tab key: an unfinished command line parsed, the values of its flags, and the scripts.

Nothing here imports torch, and nothing runs a command. Typer's own completion, given the same values, needs 0.22 to
0.25 CPU seconds a Tab in place of 0.19 and answers 34 of the 50 lines of the tests: it offers words or files, not
both, and no second value after one flag.
"""
