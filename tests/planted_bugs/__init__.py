"""Privacy bugs to plant into the production code, each with the check that must find it."""
