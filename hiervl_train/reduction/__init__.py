"""What ranks do with gradients and with the optimiser's state."""
