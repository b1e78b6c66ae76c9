"""The command line: argument parsing only. Each command is a module that imports its subsystem when it runs."""
