"""The names of the files in a site's folder. It opens none of them."""

POLICY = "policy.toml"  # the data steward's limits
LEDGER = "ledger.db"  # every debit and every policy, for all studies
HEADS = "heads.db"  # what others signed about the ledger's end
