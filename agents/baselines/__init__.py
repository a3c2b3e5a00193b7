"""What dream-trained agents are compared with: a clone of recorded drives, and training in the simulator."""
