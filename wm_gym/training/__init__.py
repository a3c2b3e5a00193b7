"""Training of world models: the loop, its checkpoints, validation and logs."""
