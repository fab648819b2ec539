"""The end of a study at a site: the model that is taken home, and what is to be known of it.

Written again from the same files it is the same bytes. It asks nobody and reads no record.
"""

from pathlib import Path

from client import folder as names
from client.membership import Member
from privacy.errors import DataError
from privacy.ledger import Ledger
from privacy.ring import Ring
from privacy.roster import Plan
from shared_models.card import Ending, card
from shared_models.durable import write_durably
from shared_models.guarantee import cost, guarantee, unknown_noise
from shared_models.model_file import DESCRIPTION, MODEL, description, json_bytes, model_bytes
from shared_models.notice import Notice
from shared_models.registry import count_parameters
from shared_models.roster_file import RosterFile
from shared_models.steps import site_encoding
from shared_models.strategies import read_state

CARD = "card.md"
_COVERS = "It covers this study, by the debits in this site's own ledger."


def take_home(
    member: Member,
    roster: RosterFile,
    plan: Plan,
    notice: Notice,
    state: bytes,
    computed: bool,
) -> Path:
    """Write the final model, its description and a report into the site's folder.

    Args:
        member: the site.
        roster: the last version.
        plan: that was run.
        notice: of the end, checked.
        state: that came with it.
        computed: whether the site came to that state by itself; else it is the server's word.

    Raises:
        DataError: the folder cannot be written.
        ProtocolError: the state is none of this network.
    """
    final = read_state(state, count_parameters(member.study))
    promise = _promise(member, plan)
    folder = member.folder / names.MODEL
    study = member.study
    said = description(study, promise)
    said["computed_here"] = computed
    told = notice.model_dump()
    ending = Ending(notice.reason, notice.plan, final.round, 0, told["released"], told["subgroups"])
    text = card(study, roster, ending, promise, _COVERS, signed=False, computed=computed)
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        write_durably(folder / MODEL, model_bytes(study, final))
        write_durably(folder / DESCRIPTION, json_bytes(said))
        write_durably(folder / CARD, text.encode())
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror})") from error
    return folder


def _promise(member: Member, plan: Plan) -> dict[str, object]:
    study = member.study
    with Ledger(member.folder / names.LEDGER) as ledger:
        events = ledger.events(study=study.digest())
    encoding = site_encoding(study, plan.n, plan.values)
    ring = encoding if isinstance(encoding, Ring) else None
    spent = cost(events, study)
    peers = None if ring is None else cost(events, study, unknown_noise(ring))
    return guarantee(study, plan.n, spent, peers, ring)
