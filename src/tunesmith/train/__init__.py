"""Training: losses, optimizer and schedule, the loop, checkpoints."""
