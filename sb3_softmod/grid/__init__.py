"""Grids of runs, methods x task sets x seeds: on this machine, or on a Ray cluster."""
