"""Code that a model wrote, run with limits."""
