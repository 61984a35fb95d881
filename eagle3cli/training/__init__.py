"""The training of a draft: the loop, its parts, and what each run keeps.

Targets and batches are ``backends``; commands and pages are above.
"""
