"""Label maps: one file for each kind."""
