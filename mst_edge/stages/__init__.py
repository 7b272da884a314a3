"""The stages of a run, one per file, in the order data, distill, variants, deploy."""
