"""Notebooks as files, the demo, the drawings of the architecture."""
