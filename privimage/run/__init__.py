"""A run: its folder, what its stages share, and what it may spend."""
