"""Driving by hand in a browser: in the dream, in the simulator, or in both side by side."""
