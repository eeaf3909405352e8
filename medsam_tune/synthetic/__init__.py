"""Made-up scans and scenes: no patient, no download."""
