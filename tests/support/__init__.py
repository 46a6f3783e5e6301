"""What tests are made of: small and random models, oracles, faults to plant."""
