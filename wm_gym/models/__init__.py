"""The parts of a world model: pure torch, with no access to files or environments."""
