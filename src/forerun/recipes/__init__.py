"""Full runs as Python functions: what the commands do, for use from Python."""
