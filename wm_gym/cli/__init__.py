"""The command line ``wm-gym``: one module a command, which only parses and calls."""
