"""Molecules as SMILES to counts in public buckets, and to scaffolds; no vocabulary is learnt.

N-grams of the text's symbols need nothing but numpy. RDKit, an extra, gives circular fingerprints,
which are the same however a molecule is written, and scaffolds.
"""

import re
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from client.data.cells import texts
from client.data.table import Table
from client.data.tokens import bucket
from privacy.errors import StudyError
from shared_models.contract import MoleculeColumn

ATOM = re.compile(r"\[[^\]]*\]|Br|Cl|[BCNOPSFIbcnops*]")
_SYMBOL = re.compile(r"\[[^\]]*\]|Br|Cl|%\d\d|.")  # an atom, a bond, a ring's number, a bracket


def molecule_features(table: Table, name: str, column: MoleculeColumn) -> npt.NDArray[np.float32]:
    """Return (N, buckets) of log(1 + how often what falls into the bucket is in the molecule).

    Raises:
        DataError: a text is missing, or RDKit is asked and reads no molecule in it.
        StudyError: RDKit is asked for and is not there.
    """
    features = np.zeros((table.length, column.buckets), dtype=np.float32)
    if column.features == "morgan":
        _check_rdkit()
        from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator

        generator = GetMorganGenerator(radius=2, fpSize=column.buckets)
        for row, molecule in enumerate(_molecules(table, name)):
            if molecule is not None:
                features[row] = generator.GetCountFingerprintAsNumPy(molecule)
    else:
        place: dict[str, int] = {}
        for row, text in enumerate(texts(table, name)):
            for gram, count in _grams(text, column.grams).items():
                if gram not in place:
                    place[gram] = bucket(gram, column.buckets)
                features[row, place[gram]] += count
    return np.log1p(features)


def molecule_symbols(text: str) -> list[str]:
    """Return the symbols of a SMILES text, in order: nothing of it is left out."""
    return _SYMBOL.findall(text)


def molecule_places(text: str, column: MoleculeColumn) -> dict[int, list[range]]:
    """Return, for each bucket, the runs of symbols that fell into it; of a circle, its middle.

    Args:
        text: a molecule that `molecule_features` has read.
        column: its contract.
    """
    symbols = molecule_symbols(text)
    places: dict[int, list[range]] = {}
    if column.features == "ngrams":
        for run in _runs(len(symbols), column.grams):
            gram = " ".join(symbols[run.start : run.stop])
            places.setdefault(bucket(gram, column.buckets), []).append(run)
        return places
    from rdkit.Chem.rdFingerprintGenerator import AdditionalOutput, GetMorganGenerator
    from rdkit.rdBase import BlockLogs

    atoms = [place for place, symbol in enumerate(symbols) if ATOM.fullmatch(symbol)]
    noted = AdditionalOutput()
    noted.AllocateBitInfoMap()
    generator = GetMorganGenerator(radius=2, fpSize=column.buckets)
    with BlockLogs():  # its warnings show the molecule
        generator.GetCountFingerprint(_molecule(text), additionalOutput=noted)
    for number, circles in noted.GetBitInfoMap().items():  # atoms are numbered as they stand
        places[number] = [range(atoms[atom], atoms[atom] + 1) for atom, _ in circles]
    return places


def scaffolds(table: Table, name: str) -> npt.NDArray[np.object_]:
    """Return (N,) scaffolds (Bemis and Murcko 1996) as SMILES; errors as `molecule_features`."""
    _check_rdkit()
    from rdkit.Chem import MolToSmiles
    from rdkit.Chem.Scaffolds.MurckoScaffold import GetScaffoldForMol

    found = np.full(table.length, "", dtype=object)
    for row, molecule in enumerate(_molecules(table, name)):
        if molecule is not None:
            core = GetScaffoldForMol(molecule)  # type: ignore[no-untyped-call]
            # Chains have none: each is its own.
            found[row] = MolToSmiles(core if core.GetNumAtoms() else molecule)
    return found


def _grams(text: str, longest: int) -> Counter[str]:
    """Count the runs of 1 to ``longest`` symbols."""
    symbols = molecule_symbols(text)
    return Counter(" ".join(symbols[run.start : run.stop]) for run in _runs(len(symbols), longest))


def _runs(count: int, longest: int) -> Iterator[range]:
    for length in range(1, longest + 1):
        for start in range(count - length + 1):
            yield range(start, start + length)


def _molecules(table: Table, name: str) -> list[Any]:
    """Return N molecules, None for those that are left out."""
    from rdkit.rdBase import BlockLogs

    with BlockLogs():  # its warnings show the molecule
        found = [_molecule(text) for text in texts(table, name)]
    bad = np.array([molecule is None for molecule in found], dtype=np.bool_)
    table.refuse(bad, name, "a molecule in SMILES", "another text")
    return found


def _molecule(text: str) -> Any:
    """Return a molecule, also one whose valences are unusual, as metals' are; None of no SMILES."""
    from rdkit.Chem import MolFromSmiles, SanitizeFlags, SanitizeMol

    molecule = MolFromSmiles(text, sanitize=False) if text else None
    if molecule is not None:
        molecule.UpdatePropertyCache(strict=False)
        rules = SanitizeFlags.SANITIZE_ALL ^ SanitizeFlags.SANITIZE_PROPERTIES
        SanitizeMol(molecule, rules, catchErrors=True)
    return molecule


def _check_rdkit() -> None:
    if find_spec("rdkit") is None:
        raise StudyError(
            "data.columns: features = 'morgan' and split = 'scaffold' expected RDKit, found none",
            "pip install 'fedward[molecules]'",
        )
