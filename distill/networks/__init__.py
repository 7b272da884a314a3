"""Networks, one family per file: drop a file here that registers its classes in ``NETWORKS``."""
