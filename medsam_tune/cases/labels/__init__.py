"""Labels of scans: one file for each kind."""
