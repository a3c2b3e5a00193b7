"""What dream-trained agents are compared with: a clone of recorded episodes, and training in the simulator."""
