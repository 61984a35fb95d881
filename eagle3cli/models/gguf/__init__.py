"""A draft as llama.cpp's GGUF."""
