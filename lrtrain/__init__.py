"""LongRecipe, training half: shards to an extended, annealed and merged model."""
