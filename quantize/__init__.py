"""Export, calibration and post-training quantization: from a student to variants."""
