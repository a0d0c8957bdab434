"""LAPA's policies (`--policy.type=lapa`) and lapa's benchmarks (`--env.type=lapa`) in LeRobot.

LeRobot imports this package because its name begins with lerobot_policy_, and finds the policy and its processors by
the names of the modules.
"""

from lerobot_policy_lapa.benchmark import LapaEnvConfig
from lerobot_policy_lapa.configuration_lapa import LapaConfig

__all__ = ["LapaConfig", "LapaEnvConfig"]
