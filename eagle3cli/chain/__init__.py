"""``eagle3 run``: the stages of the whole chain, the engine that runs them, and the report of a run."""
