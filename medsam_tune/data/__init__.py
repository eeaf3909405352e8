"""What goes in: datalists, checks, intensity windows, frames, the slice store, phantoms."""
