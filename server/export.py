"""The bundle of a study that is over: the model, and everything that is to be known of it, signed.

It computes no model and no guarantee; the same folder gives the same bytes.
"""

import hashlib
import shutil
from pathlib import Path
from tempfile import mkdtemp

import tomli_w
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from privacy.errors import DataError
from privacy.keys import Identity
from server.books import Page
from server.checkpoint import Checkpoint
from server.costs import Costs
from server.folder import Folder
from server.standing import read_checkpoint, released, released_subgroups
from shared_models.card import Ending, card
from shared_models.durable import sync_folder, write_durably
from shared_models.model_file import DESCRIPTION, MODEL, description, json_bytes, model_bytes
from shared_models.roster_file import RosterFile, roster_bytes
from shared_models.strategies import read_state

STUDY, ROSTER, PRIVACY, CARD = "study.toml", "roster.json", "privacy.json", "card.md"
SUMS, SIGNATURE, SERVER = "SHA256SUMS", "SHA256SUMS.sig", "server.pem"
CONTEXT = b"fedward export"  # after the "FSA1-sig" of all our signatures
COVERS = (
    "It covers this study: every attempt in which records may have been read, by the plan, and so "
    "is at least what any site has debited."
)
Document = dict[str, object]


def export(folder: Folder, page: Page, out: Path) -> Path:
    """Write the bundle into ``out``, in the place of an earlier one.

    Raises:
        DataError: the study is not over, or the folder cannot be written.
    """
    if page.ended is None or page.roster is None:
        raise DataError(
            "expected a study that is over, found one that is not; nothing was written",
            "`fedward-server status` shows how far it is",
        )
    checkpoint = read_checkpoint(folder)
    files = _files(folder, page, page.roster, checkpoint)
    identity = folder.identity()
    files[SERVER] = _pem(identity)
    sums = "".join(
        f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)
    ).encode()
    files |= {SUMS: sums, SIGNATURE: identity.sign(CONTEXT, sums)}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.exists() and any(out.iterdir()) and not (out / SUMS).exists():
            raise DataError(
                f"{out}: expected a new folder or an earlier bundle, found other files; nothing "
                "was written",
                "give another --out",
            )
        aside = Path(mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        try:
            for name, content in files.items():
                write_durably(aside / name, content)
            if out.exists():
                shutil.rmtree(out)
            aside.replace(out)
            sync_folder(out.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror})") from error
    return out


def _files(
    folder: Folder, page: Page, roster: RosterFile, checkpoint: Checkpoint | None
) -> dict[str, bytes]:
    study, parameters = folder.study, folder.settings.parameters
    state = checkpoint.state if checkpoint else read_state(folder.first(), parameters)
    costs = Costs(study, len(roster.sites), parameters)
    promise = costs.promise(page.begun)
    report: Document = {
        "study": study.name,
        "study_digest": study.digest(),
        "plan": page.plan,
        "sites": len(roster.sites),
        "rounds": state.round,
        "debited_at_most": costs.times(page.begun),
        **promise,
    }
    number, figures = released(checkpoint)
    ending = Ending(
        page.ended or "stopped",
        page.plan or "",
        state.round,
        number,
        figures,
        released_subgroups(checkpoint),
    )
    text = card(study, roster, ending, promise, COVERS, signed=True)
    return {
        MODEL: model_bytes(study, state),
        DESCRIPTION: json_bytes(description(study, promise)),
        STUDY: tomli_w.dumps(study.document()).encode(),
        ROSTER: roster_bytes(roster),
        PRIVACY: json_bytes(report),
        CARD: text.encode(),
    }


def _pem(identity: Identity) -> bytes:
    key = Ed25519PublicKey.from_public_bytes(identity.public)
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
