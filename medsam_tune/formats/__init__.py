"""One file reads and writes one format."""
