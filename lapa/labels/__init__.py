"""Label sources: what stage 2 predicts. The same two steps for every method: fit (stage 1), then label all video."""
