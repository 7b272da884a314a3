"""Raw public collections that datasets are built from: their addresses, checksums and readers."""
