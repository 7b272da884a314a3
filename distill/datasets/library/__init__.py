"""Built-in datasets, one file each: drop a file here with a ``DatasetBuilder`` registered in ``DATASETS``."""
