"""Decoding in this process: batched generation, and lossless speculation with a draft.

Servers are ``client``.
"""
