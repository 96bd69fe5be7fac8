"""LongRecipe, offline half: a text corpus to shards of compressed long-context rows."""
