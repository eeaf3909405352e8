"""Scores on whole cases, and pictures."""
