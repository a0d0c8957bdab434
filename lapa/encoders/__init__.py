"""Frozen vision encoders: a picture in, numbers that describe it out; one file each.

Nobody trains them here. A `Config` says how many numbers a picture gets (`features`) and which weights they come from
(`weights`, a hash; "" where there are none), without loading anything; `build()` gives the encoder, which takes
float32 [B, 3, size, size] in [0, 1] and returns float32 [B, features]. Stage 1 keeps the features of all frames on disk
(data/features.py).
"""
