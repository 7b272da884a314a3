"""Distillation methods, one per file: drop a file here that registers its class in ``METHODS``."""
