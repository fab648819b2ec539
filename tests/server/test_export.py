"""The bundle that is taken home: what it promises in words, and that every byte of it is signed."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from client.predict import load_model
from privacy.errors import DataError
from server import desk
from server.books import Books
from server.checkpoint import Checkpoint, save
from server.costs import Costs
from server.export import export
from server.folder import BOOKS, CHECKPOINT, Folder
from shared_models.roster_file import read_roster
from shared_models.strategies import read_state
from shared_models.study import load_study
from shared_models.weights import vector_of
from shared_models.wording import show_epsilon
from tests.server.conftest import DISTRIBUTED
from tests.server.members import NAMES, enrol

AUC = {"value": 0.8125, "low": 0.75, "high": 0.875, "n": 96}


def ended(
    folder: Folder, rounds: int = 3, reason: str = "finished", subgroups: object = None
) -> Path:
    """A folder whose study is over, with a model that is known, and its bundle."""
    books = Books(folder / BOOKS)
    enrol(books)
    desk.seal(folder, books)
    desk.revoke(folder, books, "graz")
    for _ in range(rounds):
        books.begin_attempt("train")
    start = read_state(folder.first(), folder.settings.parameters)
    state = replace(start, round=rounds, model=np.array([0.5, -0.25]))
    row: dict[str, object] = {"round": rounds, "sites": 3, "released": {"auc": AUC}}
    if subgroups is not None:
        row["subgroups"] = subgroups
    if rounds:
        save(folder / CHECKPOINT, Checkpoint(folder.study.digest(), state, (row,)))
    books.end(reason, "" if reason == "finished" else "too few sites")  # type: ignore[arg-type]
    out = export(folder, books.page(), folder / "export")
    books.close()
    return out


@pytest.fixture
def distributed(make_folder: Callable[..., Folder]) -> Folder:
    """Nobody is allowed for who puts noise together: the two guarantees are then two figures."""
    privacy = {**DISTRIBUTED, "colluders": 0}
    return make_folder(privacy=privacy, training={"learning_rate": 0.5})


def check_signature(bundle: Path, server: bytes) -> None:
    """As the card says, without a shell."""
    sums = (bundle / "SHA256SUMS").read_bytes()
    key = Ed25519PublicKey.from_public_bytes(server)
    key.verify((bundle / "SHA256SUMS.sig").read_bytes(), b"FSA1-sigfedward export" + sums)
    listed = dict(line.split("  ")[::-1] for line in sums.decode().splitlines())
    here = {path.name for path in bundle.iterdir()}
    if here != {*listed, "SHA256SUMS", "SHA256SUMS.sig"}:
        raise ValueError("another file")
    for name, digest in listed.items():
        if hashlib.sha256((bundle / name).read_bytes()).hexdigest() != digest:
            raise ValueError(name)


def test_both_guarantees_are_printed_with_what_was_debited(distributed: Folder) -> None:
    bundle = ended(distributed)
    report = json.loads((bundle / "privacy.json").read_text())
    costs = Costs(distributed.study, len(NAMES), distributed.settings.parameters)
    wanted = costs.promise({"train": 3})
    assert (report["epsilon"], report["delta"]) == (wanted["epsilon"], 1e-5)
    assert report["against_sites"] == wanted["against_sites"]
    assert report["against_sites"]["epsilon"] > report["epsilon"] > 0
    assert report["rdp_epsilon"] >= report["epsilon"]
    assert report["debited_at_most"] == {"train": 3, "evaluate": 0}
    card = (bundle / "card.md").read_text()
    everybody, peers = show_epsilon(report["epsilon"]), show_epsilon(
        report["against_sites"]["epsilon"]
    )  # fmt: skip
    assert f"| the server, and every reader of the model | {everybody} | 1e-05 | record |" in card
    assert f"| one site that knows its own noise | {peers} | 1e-05 | record |" in card
    assert json.loads((bundle / "model.json").read_text())["privacy"] == {
        name: report[name] for name in wanted
    }


def test_figures_by_group_stand_in_the_card_and_small_groups_as_left_out(
    make_folder: Callable[..., Folder],
) -> None:
    subgroups = {"f": {"auc": AUC, "loss": {"value": None, "low": None, "high": None, "n": 9}}}
    folder = make_folder(
        data__columns__sex={"kind": "category", "values": ["f", "m"], "input": False},
        evaluation__subgroups={"column": "sex"},
    )
    card = (ended(folder, subgroups=subgroups | {"m": None}) / "card.md").read_text()
    assert "The same by “sex”" in card
    assert "| f | AUC | 0.812 | 0.750 to 0.875 | 96 |" in card
    assert "| f | Loss |" not in card  # it has no value
    assert "| m | left out: too few records to be told | | | |" in card


def test_in_mode_local_there_is_one_guarantee_against_everybody(
    make_folder: Callable[..., Folder],
) -> None:
    folder = make_folder()
    bundle = ended(folder)
    report = json.loads((bundle / "privacy.json").read_text())
    assert "against_sites" not in report
    card = (bundle / "card.md").read_text()
    assert f"every reader of the model | {show_epsilon(report['epsilon'])} |" in card
    assert "of the noise |" not in card


def test_the_card_says_who_took_part_and_what_was_measured(distributed: Folder) -> None:
    card = (ended(distributed) / "card.md").read_text()
    for name in NAMES:
        assert f"| {name} |" in card
    assert "| age | number | low 0; high 100 |" in card
    assert "| ill (predicted) | category | values no, yes |" in card
    assert card.count("left or revoked; past rounds stay in the model") == 1
    assert "0.812 | 0.750 to 0.875 | 96 |" in card
    assert "after round 3" in card


def test_a_study_that_stopped_says_so(make_folder: Callable[..., Folder]) -> None:
    bundle = ended(make_folder(), rounds=0, reason="stopped")
    card = (bundle / "card.md").read_text()
    assert "**The study did not reach its end.**" in card
    assert "untrained" in card
    assert json.loads((bundle / "privacy.json").read_text())["debited_at_most"]["train"] == 0


def test_the_bundle_is_signed_by_the_servers_key_of_the_roster(distributed: Folder) -> None:
    bundle = ended(distributed)
    server = distributed.identity().public
    check_signature(bundle, server)
    roster = read_roster((bundle / "roster.json").read_bytes())
    assert bytes.fromhex(roster.server) == server
    shown = load_pem_public_key((bundle / "server.pem").read_bytes())
    assert isinstance(shown, Ed25519PublicKey)
    assert shown.public_bytes_raw() == server


def test_one_changed_byte_of_any_file_is_noticed(distributed: Folder, tmp_path: Path) -> None:
    bundle, server = ended(distributed), distributed.identity().public
    for path in sorted(bundle.iterdir()):
        size = path.stat().st_size
        for place in {0, size // 2, size - 1}:
            copy = tmp_path / "copy"
            shutil.copytree(bundle, copy)
            data = bytearray(path.read_bytes())
            data[place] ^= 1
            (copy / path.name).write_bytes(data)
            with pytest.raises((InvalidSignature, ValueError)):
                check_signature(copy, server)
            shutil.rmtree(copy)


@pytest.mark.skipif(
    not (shutil.which("openssl") and shutil.which("sha256sum")), reason="no openssl or sha256sum"
)
def test_what_the_card_says_to_type_finds_a_changed_byte(
    distributed: Folder, tmp_path: Path
) -> None:
    bundle = ended(distributed)
    card = (bundle / "card.md").read_text()
    typed = [line.strip() for line in card.splitlines() if line.startswith("    ")]
    assert [line.split()[0] for line in typed] == ["{", "openssl"]
    read_key = next(part for part in card.split("`") if part.startswith("openssl pkey -pubin"))

    def run(folder: Path, *commands: str) -> tuple[int, str]:
        done = subprocess.run(
            ["bash", "-ec", "\n".join(commands)], cwd=folder, capture_output=True, text=True
        )
        return done.returncode, done.stdout

    work = tmp_path / "home"
    shutil.copytree(bundle, work)
    assert run(work, "sha256sum -c SHA256SUMS", *typed)[0] == 0
    server = "".join(run(work, read_key)[1].split())
    assert server == distributed.identity().public.hex()
    (work / "model.safetensors").write_bytes((bundle / "model.safetensors").read_bytes()[:-1])
    assert run(work, "sha256sum -c SHA256SUMS")[0] != 0
    sums = (bundle / "SHA256SUMS").read_bytes()
    (work / "SHA256SUMS").write_bytes(sums.replace(b"a", b"b", 1))
    assert run(work, *typed)[0] != 0


def test_the_model_is_the_checkpoints_and_can_be_used(distributed: Folder) -> None:
    study, network = load_model(ended(distributed))
    assert study.digest() == distributed.study.digest()
    assert vector_of(network).tolist() == [0.5, -0.25]


def test_a_bundle_has_these_files_and_no_other(distributed: Folder) -> None:
    bundle = ended(distributed)
    assert {path.name for path in bundle.iterdir()} == {
        "SHA256SUMS",
        "SHA256SUMS.sig",
        "card.md",
        "model.json",
        "model.safetensors",
        "privacy.json",
        "roster.json",
        "server.pem",
        "study.toml",
    }


def test_the_study_of_the_bundle_is_the_one_that_was_approved(distributed: Folder) -> None:
    study = load_study(ended(distributed) / "study.toml")
    assert study.digest() == distributed.study.digest() == distributed.settings.study


def test_no_key_is_taken_home(distributed: Folder) -> None:
    held = b"".join(path.read_bytes() for path in ended(distributed).iterdir())
    for path in distributed.path.rglob("*.key"):
        assert max(path.read_bytes().splitlines(), key=len) not in held
    assert b"PRIVATE" not in held


def test_written_again_it_is_the_same_bytes(distributed: Folder) -> None:
    bundle = ended(distributed)
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    books = Books(distributed / BOOKS)
    export(distributed, books.page(), bundle)
    books.close()
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before


def test_before_the_end_there_is_nothing_to_take_home(distributed: Folder) -> None:
    books = Books(distributed / BOOKS)
    for before in (lambda: None, lambda: enrol(books), lambda: desk.seal(distributed, books)):
        before()
        with pytest.raises(DataError, match="expected a study that is over"):
            export(distributed, books.page(), distributed / "export")
    books.close()
    assert not (distributed / "export").exists()


def test_a_folder_of_other_files_is_left_alone(distributed: Folder, tmp_path: Path) -> None:
    ended(distributed)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    books = Books(distributed / BOOKS)
    with pytest.raises(DataError, match="found other files; nothing was written"):
        export(distributed, books.page(), tmp_path / "mine")
    books.close()
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    assert not list(tmp_path.glob(".mine.*"))
