"""Molecules as SMILES to counts in public buckets, and to scaffolds; no vocabulary is learnt.

N-grams of the text's symbols need nothing but numpy. RDKit, an extra, gives circular fingerprints,
which are the same however a molecule is written, and scaffolds.
"""

import re
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from client.data.cells import texts
from client.data.table import Table
from client.data.tokens import bucket
from privacy.errors import StudyError
from shared_models.contract import MoleculeColumn

_SYMBOL = re.compile(r"\[[^\]]*\]|Br|Cl|%\d\d|.")  # an atom, a bond, a ring's number, a bracket


def molecule_features(table: Table, name: str, column: MoleculeColumn) -> npt.NDArray[np.float32]:
    """Return (N, buckets) of log(1 + how often what falls into the bucket is in the molecule).

    Raises:
        DataError: a text is missing, or RDKit is asked and reads no molecule in it.
        StudyError: RDKit is asked for and is not there.
    """
    features = np.zeros((table.length, column.buckets), dtype=np.float32)
    if column.features == "morgan":
        from_rdkit = _rdkit()
        generator = from_rdkit.rdFingerprintGenerator.GetMorganGenerator(
            radius=2, fpSize=column.buckets
        )
        for row, molecule in enumerate(_molecules(table, name, from_rdkit)):
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


def scaffolds(table: Table, name: str) -> npt.NDArray[np.object_]:
    """Return (N,) scaffolds (Bemis and Murcko 1996) as SMILES; errors as `molecule_features`."""
    from_rdkit = _rdkit()
    found = np.full(table.length, "", dtype=object)
    for row, molecule in enumerate(_molecules(table, name, from_rdkit)):
        if molecule is not None:
            core = from_rdkit.Scaffolds.MurckoScaffold.GetScaffoldForMol(molecule)
            # Chains have none: each is its own.
            found[row] = from_rdkit.MolToSmiles(core if core.GetNumAtoms() else molecule)
    return found


def _grams(text: str, longest: int) -> Counter[str]:
    """Count the runs of 1 to ``longest`` symbols."""
    symbols = _SYMBOL.findall(text)
    return Counter(
        " ".join(symbols[start : start + length])
        for length in range(1, longest + 1)
        for start in range(len(symbols) - length + 1)
    )


def _molecules(table: Table, name: str, from_rdkit: Any) -> list[Any]:
    with from_rdkit.rdBase.BlockLogs():  # its warnings show the molecule
        found = [from_rdkit.MolFromSmiles(text) if text else None for text in texts(table, name)]
    bad = np.array([molecule is None for molecule in found], dtype=np.bool_)
    table.refuse(bad, name, "a molecule in SMILES", "another text")
    return found


def _rdkit() -> Any:
    """Return rdkit.Chem, with the parts that are used here."""
    try:
        from rdkit import Chem, rdBase
        from rdkit.Chem import rdFingerprintGenerator
        from rdkit.Chem.Scaffolds import MurckoScaffold
    except ImportError:
        raise StudyError(
            "data.columns: features = 'morgan' and split = 'scaffold' expected RDKit, found none",
            "pip install 'fedward[molecules]'",
        ) from None
    Chem.rdBase, Chem.rdFingerprintGenerator = rdBase, rdFingerprintGenerator
    Chem.Scaffolds.MurckoScaffold = MurckoScaffold
    return Chem
