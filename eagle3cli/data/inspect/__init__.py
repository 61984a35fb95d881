"""Rows made visible: which tokens are trained on, and why.

Colours and pages are made in ``console``.
"""
