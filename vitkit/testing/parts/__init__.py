"""What the checks of the conformance kit are made of."""
