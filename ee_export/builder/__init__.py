"""Checkpoint or graphs and held-out pages to a package: build, compile, calibrate, tune."""
