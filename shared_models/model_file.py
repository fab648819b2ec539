"""The files of a trained model that people take home: its weights, and what goes in and comes out.

A simulation leaves the same two files as a study between hospitals. It trains nothing, and it
writes no file itself.
"""

import json
from collections.abc import Mapping

import numpy as np

from shared_models.inputs import input_spec
from shared_models.registry import build_network
from shared_models.strategies import State
from shared_models.study import Study
from shared_models.weights import load_vector, safetensors_of

MODEL, DESCRIPTION = "model.safetensors", "model.json"


def model_bytes(study: Study, state: State) -> bytes:
    """Return the released model of a state, as named tensors in safetensors."""
    network = build_network(study)
    load_vector(network, state.released().astype(np.float32))
    return safetensors_of(network, {"study_digest": study.digest()})


def description(study: Study, privacy: Mapping[str, object]) -> dict[str, object]:
    """Return what is said of the model beside its weights.

    Args:
        study: as run.
        privacy: what it promises (`shared_models.guarantee`).
    """
    spec = input_spec(study)
    return {
        "study": study.document(),
        "study_digest": study.digest(),
        "input": {"kind": spec.kind, "shape": list(spec.shape), "names": list(spec.names)},
        "classes": list(study.data.classes),
        "privacy": privacy,
    }


def json_bytes(document: Mapping[str, object]) -> bytes:
    """Return a document as indented JSON; NaN is refused, undefined is null."""
    return json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False).encode() + b"\n"
