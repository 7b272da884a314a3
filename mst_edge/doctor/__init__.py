"""What works on this machine, proved rather than claimed."""
