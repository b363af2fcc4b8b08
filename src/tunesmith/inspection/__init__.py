"""Looking inside: what becomes of a text in a model, before and after tuning."""
