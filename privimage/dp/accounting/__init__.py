"""What a private training costs: from mechanisms to bounds on ε, from an ε to noise or steps."""
