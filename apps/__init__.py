"""What runs on the device. Never imports torch."""
