"""What is wrong with a data set, found before any compute is spent on it."""
