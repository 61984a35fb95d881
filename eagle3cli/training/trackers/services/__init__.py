"""One file for each experiment tracker, named as ``--report-to`` knows it: its name is all that registers it.

What such a file holds stands in ``trackers/tracker.py``.
"""
