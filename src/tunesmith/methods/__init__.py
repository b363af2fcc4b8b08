"""The ways to adjust the weights: four families, one table."""
