"""What training adds to MONAI."""
