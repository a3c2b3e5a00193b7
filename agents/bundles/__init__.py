"""A finished agent: its folder, the driver that it is loaded as, and the files it is exported to."""
