"""Images of rows: what names one, whether it can be read, and what a target's processor makes of it.

No pixels are kept: a reference is a path (or a ``data:`` URL) and the hash of the file's bytes.
"""
