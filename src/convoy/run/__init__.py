"""A run is a directory: its files, whom it belongs to, what it was made with."""
