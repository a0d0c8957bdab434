"""Label sources: what stage 2 predicts. The same two steps for every method: fit (stage 1), then label all video."""

BATCH = 64  # pairs labelled at once: larger batches leave the cache and are a third slower on a CPU
