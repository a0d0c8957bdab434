"""Robot actions: what they are (spec), their classes, and what classes mean."""
