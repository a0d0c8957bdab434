"""What the codes mean, in figures with a baseline: one question a file, each with its picture."""
