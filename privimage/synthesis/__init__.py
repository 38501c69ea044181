"""Fine-tuning under differential privacy, and the images that come of it."""
