"""The command line. Heavy imports happen inside commands, so that help and usage errors answer at once."""
