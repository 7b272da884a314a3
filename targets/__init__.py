"""Hardware targets and their runtimes: probe, build, run, measure, gate, pack."""
