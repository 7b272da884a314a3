"""Ways to quantize, one per file."""
