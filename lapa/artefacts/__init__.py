"""Finished folders on disk and on the hub."""
