"""Questions that are asked of Tabletop alone: they need its simulator, or what its states and tasks tell."""
