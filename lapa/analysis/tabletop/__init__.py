"""Questions that only Tabletop can answer: they need its simulator, its states or its tasks."""
