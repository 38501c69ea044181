"""Which public classes the sensitive images resemble: classifier, noisy query, selection."""
