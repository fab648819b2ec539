"""The names of the files in a site's folder. It opens none of them."""

POLICY = "policy.toml"  # the data steward's limits
LEDGER = "ledger.db"  # every debit and every policy, for all studies
PEERS = "peers.db"  # what was seen of the peers' ledgers
JOURNAL = "journal.db"  # every decision, and what left the site, for all studies
LOGS = "logs.db"  # ends of journals: the own one signed by servers, the peers' by each
IDENTITY = "identity.key"  # Ed25519: who the site is
NODE = "node.key"  # EC P-384: signs requests alone
LOG = "site.log"  # words for people
LOCK = "lock"  # held by the program that works in the folder

# Of one study:
MEMBERSHIP = "site.json"  # where the server is, which study, which records
STUDY = "study.json"  # in canonical form
AUTHORITY = "authority.pem"  # that the server's certificate must be of
SPLIT = "split.key"  # decides which records are held out
ROSTER = "roster.json"  # the latest one that was taken
APPROVAL = "approval.json"  # the steward's, signed
PROTOCOL = "protocol.db"  # what the protocol must not forget
NOTICE = "notice.bin"  # the server's last message: how the study ended
LEFT = "left.json"  # the site takes part no longer
MODEL = "model"  # what is taken home
