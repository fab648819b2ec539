"""The sections of a study besides its data contract, from the model to the simulation.

Each section checks itself; what two sections must agree on is checked by the study.
"""

import math
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from shared_models.contract import Section

SITES_MIN = 3
MASKED_SITES_MAX = 100
SPARE_MAX = 32_000  # two attempts a try are counted in 16 bits


class Mlp(Section):
    """A multi-layer perceptron; hidden = [] is logistic or linear regression."""

    name: Literal["mlp"]
    hidden: tuple[Annotated[int, Field(ge=1, le=65_536)], ...] = (64, 32)
    dropout: float = Field(0.0, ge=0, lt=1)
    outputs: Literal[1, 2] = 1  # of a two-class target: one logit, or two


class Cnn(Section):
    """Convolution blocks with pooling, then one hidden layer."""

    name: Literal["cnn"]
    channels: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field((32, 64), min_length=1)
    hidden: int = Field(128, ge=1)
    norm: Literal["none", "group"] = "none"
    embedding: int = Field(16, ge=1)  # token sequences only
    dropout: float = Field(0.0, ge=0, lt=1)
    outputs: Literal[1, 2] = 1

    @field_validator("norm", mode="before")
    @classmethod
    def _no_batch_norm(cls, value: object) -> object:
        if value == "batch":
            raise ValueError("expected 'none' or 'group' (BatchNorm mixes records), found 'batch'")
        return value


class Recurrent(Section):
    """Recurrent layers, one after the other, over a series or a token sequence."""

    name: Literal["lstm", "gru", "rnn"]
    hidden: tuple[Annotated[int, Field(ge=1, le=65_536)], ...] = Field((128, 64), min_length=1)
    embedding: int = Field(32, ge=1)  # token sequences only
    dropout: float = Field(0.0, ge=0, lt=1)
    outputs: Literal[1, 2] = 1


class Attention(Section):
    """A self-attention encoder over a series or tokens, perhaps read by a recurrent layer."""

    name: Literal["attention"]
    width: int = Field(64, ge=1)
    heads: int = Field(4, ge=1)
    layers: int = Field(2, ge=1)
    feedforward: int = Field(128, ge=1)
    recurrent: Literal["none", "lstm", "gru", "rnn"] = "none"
    dropout: float = Field(0.0, ge=0, lt=1)
    outputs: Literal[1, 2] = 1

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"expected width divisible by heads, found {self.width}, {self.heads}")
        return self


class Autoencoder(Section):
    """Layers down to a short code and back: what cannot be copied so is not normal."""

    name: Literal["autoencoder"]
    hidden: tuple[Annotated[int, Field(ge=1, le=65_536)], ...] = (128,)
    code: int = Field(16, ge=1, le=65_536)


class Unet(Section):
    """A U-Net: a structure for each point of a picture or volume, seen at several sizes."""

    name: Literal["unet"]
    channels: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field((16, 32, 64), min_length=2)


class Fusion(Section):
    """A network for each kind of input, and a linear layer over what they make of it."""

    name: Literal["fusion"]
    parts: tuple[Literal["static", "series", "image"], ...] = ()  # those that are read; (): all
    width: int = Field(32, ge=1)  # numbers that a part becomes
    hidden: tuple[Annotated[int, Field(ge=1, le=65_536)], ...] = (32,)  # of static values
    cell: Literal["lstm", "gru", "rnn"] = "lstm"  # of the series
    recurrent: tuple[Annotated[int, Field(ge=1, le=65_536)], ...] = (64,)  # (): weighs all steps
    channels: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field((16, 32), min_length=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    outputs: Literal[1, 2] = 1


Model = Annotated[
    Mlp | Cnn | Recurrent | Attention | Autoencoder | Unet | Fusion, Field(discriminator="name")
]


class Augment(Section):
    """Random changes of training pictures, drawn for each record and step; never held-out ones."""

    rotate_degrees: float = Field(0.0, ge=0, le=180)  # at most, either way
    shift_pixels: float = Field(0.0, ge=0, le=4096)  # at most, each way
    flip: bool = False  # half of them mirrored, left and right


class Training(Section):
    """What a site does with the model in one round."""

    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = Field(gt=0)
    momentum: float = Field(0.0, ge=0, lt=1)  # sgd only
    weight_decay: float = Field(0.0, ge=0)  # L2: this times the weights joins the gradient
    l1: float = Field(0.0, ge=0)  # L1: this times the weights' signs does
    augment: Augment | None = None  # pictures only
    local_steps: int | None = Field(None, ge=1)
    local_epochs: int | None = Field(None, ge=1)
    batch_size: int | None = Field(None, ge=1)


class NoPrivacy(Section):
    """Training without differential privacy: simulation only."""

    mode: Literal["none"]

    @model_validator(mode="before")
    @classmethod
    def _ignore_the_rest(cls, value: object) -> object:
        # Tolerated, so that one override (privacy.mode=none) works on any study.
        if isinstance(value, dict):
            known = set(LocalPrivacy.model_fields) | set(DistributedPrivacy.model_fields)
            return {k: v for k, v in value.items() if k == "mode" or k not in known}
        return value


class _Private(Section):
    unit: Literal["record", "patient"] = "record"
    epsilon: float | None = Field(None, gt=0)
    noise_multiplier: float | None = Field(None, gt=0)
    delta: float = Field(gt=0, lt=1)
    clipping_norm: float = Field(gt=0)
    clipping: Literal["flat", "layer", "automatic"] = "flat"  # the sensitivity is the same in each
    expected_batch: int = Field(ge=1)

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("expected epsilon or noise_multiplier, one of the two")
        return self


class LocalPrivacy(_Private):
    """Each site's update is private by itself, against everyone."""

    mode: Literal["local"]
    sampling_rate: float = Field(gt=0, le=1)


class DistributedPrivacy(_Private):
    """The secure sum carries the noise of pooled training; each site adds a share."""

    mode: Literal["distributed"]
    sampling_rate: float = Field(1.0, gt=0, le=1)
    records_max: int = Field(ge=1)
    colluders: int | None = Field(None, ge=0)
    noise_answers: int | None = Field(None, ge=SITES_MIN)


Privacy = Annotated[NoPrivacy | LocalPrivacy | DistributedPrivacy, Field(discriminator="mode")]


class Aggregation(Section):
    """How updates become the next model, and under which masks they travel."""

    strategy: Literal["fedavg", "fedprox", "fedadam", "fedyogi", "fedadagrad", "scaffold"] = (
        "fedavg"
    )
    server_learning_rate: float = Field(1.0, gt=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.99, ge=0, lt=1)
    adaptivity: float = Field(1e-3, gt=0)  # tau of Reddi et al. 2021
    proximal: float = Field(0.01, ge=0)  # mu of FedProx
    average_last: float = Field(0.0, ge=0, le=1)
    min_sites: int = Field(SITES_MIN, ge=SITES_MIN, le=MASKED_SITES_MAX)
    masking: Literal["fsa1", "none"] = "fsa1"
    cohort: int = Field(0, ge=0)
    ring_bits: Literal[16, 32] = 32
    value_bound: float = Field(1.0, gt=0)
    weighting: Literal["equal", "public", "records"] = "equal"
    weights: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    deadline_s: float = Field(600.0, gt=0)
    spare_attempts: int | None = Field(None, ge=0, le=SPARE_MAX)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.weighting == "public") != bool(self.weights):
            raise ValueError('expected weights with weighting = "public", and only then')
        if self.cohort and self.cohort < self.min_sites:
            raise ValueError(f"expected cohort 0 or >= min_sites, found {self.cohort}")
        if self.masking == "fsa1" and self.cohort > MASKED_SITES_MAX:
            raise ValueError(f"expected cohort <= {MASKED_SITES_MAX} under masks")
        return self


class Subgroups(Section):
    """Groups of held-out records whose figures are told beside those of all."""

    column: str  # a category: each of its values is a group
    smallest: int = Field(20, ge=1)  # of a group with fewer records nothing is told


class Evaluation(Section):
    """Which records are held out, how often they are looked at, and what is told of them."""

    holdout: float = Field(0.2, gt=0, lt=1)
    holdout_column: str | None = None
    holdout_values: tuple[str, ...] = ()
    folds: int | None = Field(None, ge=2, le=100)
    every: int = Field(5, ge=1)
    # Evaluations without a better figure before the study stops. The figure is the loss where it is
    # told, else the task's main one: Dice, c-index or AUC, which noise leaves, and Cox's c-index.
    patience: int | None = Field(None, ge=1)
    release: Literal["noised", "exact"] = "noised"
    epsilon: float = Field(1.0, gt=0)
    subgroups: Subgroups | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if bool(self.holdout_values) != (self.holdout_column is not None):
            raise ValueError("expected holdout_column and holdout_values together")
        if self.folds is not None and self.holdout_column is not None:
            raise ValueError("expected folds or holdout_column, not both")
        return self


class Survival(Section):
    """How time until an event is learnt and judged; times in the unit of the time's column."""

    edges: tuple[float, ...] = Field(min_length=1, max_length=200)  # ends of the intervals
    horizons: tuple[float, ...] = Field(min_length=1, max_length=10)  # where risks are compared
    loss: Literal["hazards", "cox"] = "hazards"

    @model_validator(mode="after")
    def _rising(self) -> Self:
        for name in ("edges", "horizons"):
            times = getattr(self, name)
            if any(not a < b for a, b in pairwise(times)):
                raise ValueError(f"expected {name} that rise")
        if not set(self.horizons) <= set(self.edges):
            raise ValueError("expected horizons that are among the edges")
        return self


class Forecast(Section):
    """What a forecast of a series' next value is compared with, besides other networks."""

    of: str  # the variable whose next value is the target: its last one is the simplest forecast
    slot: str  # a category input, such as the meal: the mean of its records is the next simplest


class EarlyWarning(Section):
    """Which hours of a series are judged, and which false alarms are borne; a step is an hour."""

    hours: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1, max_length=24)
    at: int  # the hour of the main figure
    false_alarms: float = Field(gt=0, lt=1)  # share of records without the event that may alarm

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if any(not a < b for a, b in pairwise(self.hours)):
            raise ValueError("expected hours that rise")
        if self.at not in self.hours:
            raise ValueError(f"expected at among the hours, found {self.at}")
        return self


class Simulation(Section):
    """How a simulation divides records among virtual sites. A deployment does not read it."""

    sites: int = Field(5, ge=SITES_MIN, le=1_000_000)
    partition: str = "iid"
    seed: int = Field(7, ge=0, lt=1 << 63)

    @field_validator("partition")
    @classmethod
    def _known(cls, value: str) -> str:
        kind, _, rest = value.partition(":")
        if kind in {"iid", "files"} and not rest:
            return value
        if kind == "column" and rest:
            return value
        if kind in {"dirichlet", "quantity"}:
            try:
                if 0 < float(rest) < math.inf:
                    return value
            except ValueError:
                pass
        raise ValueError(
            "expected iid, dirichlet:ALPHA, quantity:ALPHA (ALPHA > 0), column:NAME or files, "
            f"found {value!r}"
        )
