"""One hospital: its records, its ledger, its training, its answers."""
