"""From a volume to what the model sees, and back."""
