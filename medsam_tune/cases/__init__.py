"""Cases: which files belong together, and whether they are sound."""
