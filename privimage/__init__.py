"""PrivImage: synthetic image data sets under differential privacy."""
