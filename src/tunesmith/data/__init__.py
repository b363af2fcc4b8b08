"""Data: read, recognise, divide, tokenise, pack."""
