"""Two models: a cheap one that is sampled, and a fine one that corrects it."""
