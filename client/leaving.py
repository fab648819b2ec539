"""Leave: the site takes part no longer, before its next vector, whether or not anybody hears it.

What was summed stays in the model, and what was debited stays in the ledger.
"""

from contextlib import closing
from pathlib import Path

from client import folder as names
from client.journal import Journal
from client.membership import Member, load
from client.post import post_of
from privacy import identity as identities
from privacy.errors import AbsentError, DataError
from shared_models.durable import write_durably


def leavable(folder: Path) -> Member:
    """Return the member that may leave; again after a failure, the same.

    Raises:
        DataError: the folder is none of an enrolled site, or the study is over.
    """
    member = load(folder)
    if member.has(names.NOTICE):
        raise DataError(f"{member.study.name} is over; there is nothing to leave")
    return member


def leave(member: Member) -> None:
    """Leave the study; again after a failure, it tells the coordinator again.

    A `start` that works in the folder sends no answer any more, not even one that is ready.

    Raises:
        DataError: the folder cannot be written; nothing was left.
        AbsentError: the site has left, and the coordinator does not know it yet.
    """
    folder = member.folder
    identity = identities.load(folder / names.IDENTITY)
    if not member.has(names.LEFT):
        with Journal(folder / names.JOURNAL) as journal:
            journal.note("leave", study=member.membership.study)
        try:
            write_durably(folder / names.LEFT, b"{}\n")
        except OSError as error:
            raise DataError(
                f"{folder / names.LEFT}: cannot be written ({error.strerror}); nothing was left"
            ) from error
    with closing(post_of(member, identity)) as post:
        try:
            post.leave()
        except AbsentError as error:
            raise AbsentError(
                f"the site sends nothing any more, but the coordinator was not told: {error}",
                "`fedward-site leave` again tells it",
            ) from error
