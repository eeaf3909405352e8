"""File formats of scans and label maps: one file reads and writes one format."""
