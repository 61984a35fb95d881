"""Servers over HTTP: requests, streams, errors, and many servers as one.

Servers are started in ``launch``.
"""
