"""The privacy ledger: its lines and their chain, what they say, and whether a run keeps to them."""
