"""Models: loading, the packed forward pass, heads and generation."""
