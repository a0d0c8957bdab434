"""Pictures of what the stages have learnt."""
