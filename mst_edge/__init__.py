"""mst-edge: distil a small one-modality student, quantize it, compile it per target, prove it, ship it."""
