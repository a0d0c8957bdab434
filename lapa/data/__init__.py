"""From videos to frames in memory: reading, packing, pairing, labels on disk, and action bins."""
