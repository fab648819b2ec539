"""The guarantees: secure aggregation, the private step, its accounting and the ledger."""
