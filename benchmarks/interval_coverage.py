"""How often does a 95% interval of lapa/measures/intervals.py hold the truth, and how wide is it?

Training seeds are simulated.

    python benchmarks/interval_coverage.py

A method's true success varies between training seeds (normal, so many points); each seed meets 500 episodes. Printed
for three seeds and for ten: the share of 1,000 simulated tables whose interval holds the mean, and the mean width,
beside those of the plain bootstrap (seeds and episodes drawn with replacement, and nothing more).
"""

from __future__ import annotations

import numpy as np

from lapa.measures import intervals

TABLES, EPISODES = 1000, 500


def plain(wins: np.ndarray) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    rates = wins.mean(1)
    taken = rng.integers(len(wins), size=(2000, len(wins)))
    drawn = rng.binomial(EPISODES, rates[taken]).mean(1) / EPISODES
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)


def main() -> None:
    print("seeds  success  between seeds   coverage, width (points): lapa        plain bootstrap")
    for seeds in (3, 10):
        for truth in (0.7, 0.95):
            for apart in (0.0, 0.01, 0.02, 0.05, 0.1):
                rng = np.random.default_rng(1)
                told = {"lapa": [0, 0.0], "plain": [0, 0.0]}
                for _ in range(TABLES):
                    rates = np.clip(truth + apart * rng.standard_normal(seeds), 0, 1)
                    wins = rng.random((seeds, EPISODES)) < rates[:, None]
                    for name, (low, high) in (("lapa", intervals.success(wins)), ("plain", plain(wins))):
                        told[name][0] += low <= truth <= high
                        told[name][1] += high - low
                lines = [f"{hits / TABLES:6.1%} {100 * width / TABLES:6.1f}" for hits, width in told.values()]
                print(f"{seeds:5} {truth:8.0%} {100 * apart:10.0f}              {'     '.join(lines)}", flush=True)


if __name__ == "__main__":
    main()
