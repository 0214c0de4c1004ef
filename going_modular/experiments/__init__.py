"""Measurements behind the notebooks and the README."""
