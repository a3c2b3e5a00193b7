"""Driving simulators and recording what happens."""
