"""How each operation that may use a trainable parameter hands out one gradient an example."""
