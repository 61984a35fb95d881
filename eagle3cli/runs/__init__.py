"""What run folders say of themselves: read, reported, compared and watched."""
