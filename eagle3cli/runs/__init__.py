"""What run folders say of themselves: read, reported, compared and watched.

Nothing here changes a run.
"""
