"""Plans of `lapa` commands: comparisons, searches, studies, the demo and the paper's table."""
