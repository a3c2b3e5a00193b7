"""Datasets: their files, reading and writing them, checking, converting."""
