"""Bridges: what a sparse model shows, carried over to a dense one."""
