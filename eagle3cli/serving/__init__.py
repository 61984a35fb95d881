"""The target's own replies, and the measure of a draft: local decoding, servers, regeneration, benchmark.

Training is not here.
"""
