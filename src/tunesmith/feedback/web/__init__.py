"""The page in which people rank, and the owner's page beside it."""
