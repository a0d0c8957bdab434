"""Quantizers of LAQ: continuous differences in, codes out; one file each."""
