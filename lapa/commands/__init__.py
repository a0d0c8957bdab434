"""The commands of `lapa`, by what they are for."""
