"""Leave: the site takes part no longer, before its next vector, whether or not anybody hears it.

What was summed stays in the model, and what was debited stays in the ledger.
"""

from contextlib import closing
from pathlib import Path

from client import folder as names
from client.journal import Journal
from client.membership import load
from client.post import Post
from privacy import identity as identities
from privacy.errors import AbsentError, DataError
from shared_models.durable import write_durably
from shared_models.study import Study


def leave(folder: Path) -> Study:
    """Leave the study of a folder; again after a failure, it tells the coordinator again.

    A `start` that works in the folder sees it before its next answer.

    Returns:
        The study that was left.

    Raises:
        DataError: the folder is none of an enrolled site, the study is over, or it cannot be
            written: then nothing was left.
        AbsentError: the site has left, and the coordinator does not know it yet.
    """
    member = load(folder)
    if member.has(names.NOTICE):
        raise DataError(f"{member.study.name} is over; there is nothing to leave")
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
    with closing(
        Post(
            member.address(),
            member.server,
            identity,
            member.membership.site,
            member.membership.study,
        )
    ) as post:
        try:
            post.leave()
        except AbsentError as error:
            raise AbsentError(
                f"the site sends nothing any more, but the coordinator was not told: {error}",
                "`fedward-site leave` again tells it",
            ) from error
    return member.study
