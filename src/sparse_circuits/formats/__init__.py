"""Readers of other programs' model files; the only place with foreign parameter names."""
