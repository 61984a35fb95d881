"""``eagle3 run``: the stages from prompts to a measured draft, the engine that runs them, and the report.

What a stage does is its command's business.
"""
