"""Tabletop: a Language-Table-style pushing world, small and exact enough to run the whole paper on a laptop.

language  what can be asked, in which words          world   state, contacts, success
expert    the scripted demonstrator                  render  state -> pixels, in three domains
env       the Gymnasium face
"""


def register() -> None:
    """Make `lapa/Tabletop-v0` known to Gymnasium; `import lapa` calls it. The environment is imported when made."""
    from gymnasium.envs.registration import register as gymnasium_register
    from gymnasium.envs.registration import registry

    if "lapa/Tabletop-v0" not in registry:
        gymnasium_register(
            "lapa/Tabletop-v0",
            entry_point="lapa.tabletop.env:TabletopEnv",
            vector_entry_point="lapa.tabletop.env:TabletopVectorEnv",
        )
