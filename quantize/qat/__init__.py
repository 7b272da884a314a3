"""Quantization-aware training: the int8 graph as a torch module that learns, and back into the same graph."""
