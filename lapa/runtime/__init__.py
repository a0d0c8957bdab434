"""What a run stands on: processes, precision, memory, progress."""
