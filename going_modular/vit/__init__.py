"""The parts of the Vision Transformer, its weights, and looking inside."""
