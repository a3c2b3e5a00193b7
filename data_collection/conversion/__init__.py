"""Conversion of other people's recordings into datasets, and of datasets to and from Minari."""
