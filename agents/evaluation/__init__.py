"""Drives in the simulator and what they say: returns, the reality gap, calibration, videos."""
