"""Recipes, the parts they ask for, checkpoints, and several processes."""
