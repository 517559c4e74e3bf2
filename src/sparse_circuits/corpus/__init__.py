"""Text to train on: real Python, generated idioms, any folder; tokenised into shards with an index."""
