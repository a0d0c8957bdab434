"""Frozen vision encoders: a picture in, numbers that describe it out; one file each.

Nobody trains them here. Stage 1 takes a vector of each picture, the backbone `pieces` a grid of tokens; both keep what
is seen in all frames on disk (data/features.py). A `Config` says, without loading anything,

features(image_size)  how many numbers the vector has
grid(image_size)      channels, rows and columns of the grid
weights()             a hash of the weights that it comes from; "" where there are none
borrowed()            where the weights come from (artefacts/pretrained.py `Reference`); {} where there are none

and `build()` gives the encoder: `encoder(pixels)` is the vector, float32 [B, features], `encoder.grid(pixels)` is the
grid, float32 [B, channels, rows, columns], of pixels float32 [B, 3, size, size] in [0, 1].
"""
