"""Networks and tokenizers of Hugging Face, from a folder or from the hub: ``hf:path-or-name`` in a recipe."""
