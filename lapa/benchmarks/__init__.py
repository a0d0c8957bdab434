"""Benchmarks: tasks with a success test. A benchmark is a client of a policy and never sees a model."""
