"""The store of hidden states on disk: its format, its writer, quantization, checks and sizes.

What fills it is ``backends.capture``; nothing here runs a model.
"""
