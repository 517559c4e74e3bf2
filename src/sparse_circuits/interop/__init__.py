"""Ways out to other tools, and back: one file a format."""
