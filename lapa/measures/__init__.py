"""Figures: probes and intervals."""
