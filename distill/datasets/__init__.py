"""Datasets: a folder of memory-mapped arrays, and what builds such folders. One built-in dataset per file."""
