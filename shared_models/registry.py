"""Which network a study's model.name stands for, and the network of a study, freshly initialised.

It trains nothing and reads no weights. Importing it imports torch; the study does not.
"""

from collections.abc import Callable

import torch
from torch import nn

from privacy.errors import StudyError
from shared_models.attention import build_attention
from shared_models.autoencoder import build_autoencoder
from shared_models.cnn import build_cnn
from shared_models.fusion import build_fusion
from shared_models.inputs import input_spec
from shared_models.mlp import build_mlp, build_step_mlp
from shared_models.recurrent import build_prefixes, build_recurrent
from shared_models.shape_check import checked
from shared_models.study import Study
from shared_models.tasks import TASKS, target_of
from shared_models.unet import build_unet

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "mlp": build_mlp,
    "cnn": build_cnn,
    "lstm": build_recurrent,
    "gru": build_recurrent,
    "rnn": build_recurrent,
    "attention": build_attention,
    "autoencoder": build_autoencoder,
    "unet": build_unet,
    "fusion": build_fusion,
}
"""Name -> builder(section of the study, InputSpec, number of outputs) -> network."""

FORWARD: dict[str, Callable[..., nn.Module]] = {
    "lstm": build_prefixes,
    "gru": build_prefixes,
    "rnn": build_prefixes,
    "mlp": build_step_mlp,
}
"""Those of task warning: none may see an hour before it has come."""


def build_network(study: Study, seed: int = 0) -> nn.Module:
    """Return the study's network with the initial weights that ``seed`` gives.

    The same study and seed give the same weights; the caller's random state is left as it was. It
    refuses records of another shape, by name (`shared_models.shape_check`).

    Args:
        study: task, data contract and model.
        seed: 0 <= seed < 2**63; public, the initial weights protect nothing.

    Raises:
        StudyError: the network cannot do the task, or not on records of this shape.
    """
    accepted = TASKS[study.task].networks
    if study.model.name not in accepted:
        raise StudyError(
            f"model.name: task {study.task!r} expected {' or '.join(accepted)}, "
            f"found {study.model.name!r}",
            "`fedward-sim tasks` shows which networks do which task",
        )
    spec = input_spec(study)
    with torch.random.fork_rng(devices=[]):
        # The CPU generator alone: torch.manual_seed would reseed accelerators too, for good.
        torch.default_generator.manual_seed(seed)
        networks = FORWARD if study.task == "warning" else NETWORKS
        network = networks[study.model.name](study.model, spec, target_of(study).outputs)
    return checked(network, study, spec)


def count_parameters(study: Study) -> int:
    """Return P of the study's network, without making it. Errors: as `build_network`."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_network(study).parameters())
