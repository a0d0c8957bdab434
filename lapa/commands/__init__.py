"""The commands of `lapa`, grouped by purpose."""
