"""Everything that trains, trains here: one loop, one kind of artefact."""
