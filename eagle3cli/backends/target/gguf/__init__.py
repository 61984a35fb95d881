"""A target as a .gguf file: turned into a model folder, or written for llama.cpp.

The draft's own file is written in ``models/gguf``.
"""
