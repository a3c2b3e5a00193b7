"""The configuration of a world model and its training: typed, in one place.

A configuration is a preset (``wm_gym/configs/NAME.yaml``) or a YAML file of the same form, with ``--set key=value``
changes on top. Unknown keys and values out of range are refused. The resolved configuration is saved with every run.
"The guide" is the architecture guide, which docs/guide.md restates.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from wm_gym.errors import ConfigError, did_you_mean
from wm_gym.plain_files import NotPlainError, parse_yaml, read_yaml
from wm_gym.simulator import FrameSide

ConfigT = TypeVar("ConfigT", bound=BaseModel)

# Bounds far beyond any model that trains today: a size beyond them is a mistake or damage, and would be built first and
# fail later.
Width = Annotated[int, Field(ge=1, le=16_384)]
Count = Annotated[int, Field(ge=1, le=64)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
AtLeastOne = Annotated[int, Field(ge=1)]
_MAX_STAGES = 10


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class EncoderConfig(_Section):
    """Sizes of the spatial encoder (docs/guide.md, "Encoder")."""

    stem_channels: Width = Field(default=64, description="Channels after the 7x7 stem.")
    stem_pool: bool = Field(default=True, description="Halve the size once more with a max-pool after the stem.")
    stages: tuple[Width, ...] = Field(
        default=(128, 256, 512),
        min_length=1,
        max_length=_MAX_STAGES,
        description="Channels of each stage; the first keeps its size, each later one halves it.",
    )
    blocks_per_stage: Count = Field(default=2, description="Residual blocks in a stage.")
    inner_ratio: PositiveShare = Field(
        default=1.0,
        description="Channels of a block's 3x3 convolutions over its stage's; below 1 they lie between 1x1 ones.",
    )
    attention_heads: NonNegativeInt = Field(
        default=4, description="Heads of the spatial self-attention; 0 leaves it out."
    )
    pooling: Literal["average", "flatten"] = Field(
        default="average",
        description="Global average pool (the guide's), or flatten, which keeps positions and suits small frames.",
    )


class DecoderConfig(_Section):
    """Sizes of the decoder (docs/guide.md, "Decoder")."""

    base_channels: Width = Field(default=512, description="Channels of the first, smallest feature map.")
    base_expand: Width = Field(
        default=96, description="Channels that the latent is expanded to before a 1x1 convolution widens them."
    )
    stages: tuple[Width, ...] = Field(
        default=(256, 128, 64, 64),
        min_length=1,
        max_length=_MAX_STAGES,
        description="Channels after each PixelShuffle x2 stage.",
    )
    refine: tuple[Annotated[int, Field(ge=0, le=64)], ...] = Field(
        default=(2, 1, 1, 1), description="Refinement 3x3 convolutions after each stage, one number a stage."
    )

    @model_validator(mode="after")
    def _one_refinement_a_stage(self) -> DecoderConfig:
        if len(self.refine) != len(self.stages):
            raise ValueError(f"refine has {len(self.refine)} numbers, but stages has {len(self.stages)}")
        return self


_DYNAMICS_SETTINGS = {
    "gru": ("kind", "hidden_dim", "num_layers", "mlp_ratio"),
    "rssm": ("kind", "hidden_dim", "groups", "classes"),
    "transformer": ("kind", "hidden_dim", "num_layers", "mlp_ratio", "context_length", "num_heads", "dropout"),
}


class DynamicsConfig(_Section):
    """Kind and sizes of the latent dynamics (docs/guide.md, "Dynamics")."""

    kind: str = Field(default="gru", description="A name from the dynamics registry.")
    hidden_dim: Width = Field(default=512, description="Width of the layers.")
    num_layers: Count = Field(default=4, description="gru, transformer: layers.")
    mlp_ratio: float = Field(
        default=3.0,
        ge=0.0,
        le=64.0,
        description="gru, transformer: width of each layer's MLP over hidden_dim; 0: none.",
    )
    groups: Width = Field(default=32, description="rssm: categorical variables of the stochastic latent.")
    classes: int = Field(default=32, ge=2, le=16_384, description="rssm: classes of each of them.")
    context_length: int = Field(
        default=16, ge=1, le=4096, description="transformer: steps that attention looks back over."
    )
    num_heads: Count = Field(default=8, description="transformer: attention heads; must divide hidden_dim.")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="transformer: share of values dropped in training.")

    action_gains: tuple[float, ...] = Field(
        default=(),
        max_length=64,
        description="The dynamics also see tanh(gain * a) of every action value a in [-1, 1], one for each gain: at "
        "speed, a twentieth of the steering's range is a sharp turn.",
    )
    carries_vector: bool = Field(
        default=False,
        description="rssm: the observation's vector is a part of the state, as it was observed or, in a dream, as "
        "it is predicted from the one before: to the last digit, where classes would round it.",
    )
    shows_bins: bool = Field(
        default=False,
        description="Where the vector is a part of the state, the features show it by linear bins too: so the heads "
        "and a policy tell apart what lies close together, as before a stop line and behind it.",
    )

    bounds_by_class: bool = Field(
        default=False,
        description="Where the vector is a part of the state: a number that lay at its bound in every recorded frame "
        "of a class, as the distance to a light where there is none, lies there in a dream too that draws that class.",
    )

    @model_validator(mode="after")
    def _settings_fit(self) -> DynamicsConfig:
        if self.carries_vector and self.kind != "rssm":
            raise ValueError(f"carries_vector needs kind: rssm, but kind is {self.kind}")
        for name in ("shows_bins", "bounds_by_class"):
            if getattr(self, name) and not self.carries_vector:
                raise ValueError(f"{name} needs carries_vector: true")
        if self.kind == "transformer" and self.hidden_dim % self.num_heads:
            raise ValueError(f"num_heads={self.num_heads} must divide hidden_dim={self.hidden_dim}")
        return self

    @model_serializer(mode="wrap")
    def _only_what_the_kind_uses(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out other kinds' settings: what a model is, and its fingerprint, must not change with them."""
        values: dict[str, Any] = handler(self)
        added = ("action_gains", "carries_vector", "shows_bins", "bounds_by_class")
        for name in added:
            if not getattr(self, name):
                del values[name]
        own = _DYNAMICS_SETTINGS.get(self.kind)
        if own is None:
            return values
        return {name: value for name, value in values.items() if name in own or name in added}


class HeadsConfig(_Section):
    """Reward and termination heads on the policy features."""

    hidden_dim: Width = Field(default=256, description="Width of the hidden layer.")
    num_layers: Count = Field(default=1, description="Hidden layers.")
    reward_bins: int = Field(
        default=127, ge=3, le=16_384, description="Bins of the two-hot symlog reward (arXiv 2301.04104, eq. 9)."
    )
    reward_limit: float = Field(
        default=6.0, gt=0, le=80.0, description="The bins span symlog(reward) in [-limit, limit]."
    )


class ModelConfig(_Section):
    """Architecture of a world model."""

    frame_size: tuple[FrameSide, FrameSide] = Field(
        default=(256, 256), description="Height and width of a frame, in pixels."
    )
    latent_dim: Width = Field(default=256, description="Size of the latent vector.")
    encoder: EncoderConfig = EncoderConfig()
    dynamics: DynamicsConfig = DynamicsConfig()
    decoder: DecoderConfig = DecoderConfig()
    heads: HeadsConfig = HeadsConfig()

    @property
    def encoder_stride(self) -> int:
        """How many pixels of the frame one cell of the encoder's last feature map covers, along a side."""
        return 2 * (2 if self.encoder.stem_pool else 1) * 2 ** (len(self.encoder.stages) - 1)

    @property
    def decoder_stride(self) -> int:
        """How many pixels of the frame one cell of the decoder's first feature map covers, along a side."""
        return 2 ** len(self.decoder.stages)

    @model_validator(mode="after")
    def _sizes_fit(self) -> ModelConfig:
        for name, stride in (("encoder", self.encoder_stride), ("decoder", self.decoder_stride)):
            for side in self.frame_size:
                if side < stride or side % stride:
                    raise ValueError(
                        f"frame_size {self.frame_size[0]}x{self.frame_size[1]} must be a multiple of {stride}, "
                        f"the product of the {name}'s halvings; change frame_size or {name}.stages"
                    )
        if self.encoder.attention_heads and self.encoder.stages[-1] % self.encoder.attention_heads:
            raise ValueError(
                f"encoder.attention_heads={self.encoder.attention_heads} must divide the last stage's "
                f"{self.encoder.stages[-1]} channels"
            )
        return self


class LossConfig(_Section):
    """Weights of the loss terms; the first five are the guide's, with its defaults.

    Terms of the pixels whose weight is 0 are not computed. ``consistency`` belongs to deterministic dynamics,
    ``kl_dynamics``, ``kl_representation`` and ``imagined_continuation`` to stochastic ones; the other kind has no such
    term (its termination head learns from imagined states anyway).
    """

    reconstruction: NonNegativeFloat = Field(default=1.0, description="L1 between frames and their reconstructions.")
    squared: NonNegativeFloat = Field(
        default=0.0,
        description="Square error of reconstructions beside L1. L1 paints thin things that may lie here or there, such "
        "as a route's line seen from above, in the colour of what is behind them, and then learns no more of them.",
    )
    prediction: NonNegativeFloat = Field(default=1.0, description="Temporally weighted L1 on predicted frames.")
    perceptual: NonNegativeFloat = Field(default=0.1, description="LPIPS on reconstructions; 0 turns the term off.")
    regularisation: NonNegativeFloat = Field(default=0.01, description="Mean square of the latents.")
    temporal: NonNegativeFloat = Field(default=1.0, description="lambda_t in w_t = 1 + (t / T) * lambda_t.")
    consistency: NonNegativeFloat = Field(default=1.0, description="Square error of predicted against encoded latents.")
    reward: NonNegativeFloat = Field(default=1.0, description="Cross-entropy of the reward head.")
    continuation: NonNegativeFloat = Field(default=1.0, description="Cross-entropy of the termination head.")
    imagined_continuation: NonNegativeFloat = Field(
        default=0.0,
        description="The same in the states that the dynamics imagine, one step from what was observed. A collision "
        "that is observed shows by what it did: the vehicle has stopped. In a dream it must be told before that.",
    )
    vector: NonNegativeFloat = Field(
        default=10.0,
        description="Square error and cross-entropy of the predicted vector, summed over its entries; of dynamics that "
        "carry it the negative log-likelihood, which needs a weight of about 0.01. Without effect where the simulator "
        "gives none.",
    )
    # The KL is a sum over groups, a few nats; the pixel terms are means, 0.03 to 0.1.
    kl_dynamics: NonNegativeFloat = Field(default=1e-3, description="KL that moves the prior towards the posterior.")
    kl_representation: NonNegativeFloat = Field(
        default=2e-4, description="KL that moves the posterior towards the prior."
    )
    free_nats: NonNegativeFloat = Field(
        default=1.0, description="The KL of a step counts at least this much: no gradient."
    )
    perceptual_weights: str | None = Field(
        default=None,
        description="A file with torchvision's AlexNet weights for LPIPS; without it lpips downloads them.",
    )


class LatentPhaseConfig(_Section):
    """A second phase of training, in which the encoder is frozen and every frame is encoded once.

    Encoding and its gradient are most of an update's cost. Without them the dynamics, the heads and the decoder learn
    from longer clips, and several times as many of them.
    """

    steps: NonNegativeInt = Field(default=0, description="Optimiser updates of this phase; 0 leaves it out.")
    batch_size: AtLeastOne = Field(default=24, description="Clips in one micro-batch, over all devices.")
    clip_length: int = Field(
        default=40,
        ge=3,
        description="Frames in a clip. An episode is followed for hundreds of steps: the longer the clips, the better "
        "what the dynamics remember bears that.",
    )
    decoded: AtLeastOne = Field(default=2, description="Time steps of a micro-batch's clips that are decoded.")
    learning_rate: PositiveFloat = 1e-3
    final_learning_rate: PositiveShare = Field(
        default=0.05, description="Learning rate at the end, as a share of learning_rate (cosine decay)."
    )
    warmup_steps: NonNegativeInt = Field(default=100, description="Updates of linear warm-up.")

    @model_validator(mode="after")
    def _decoded_steps_exist(self) -> LatentPhaseConfig:
        if self.decoded > self.clip_length:
            raise ValueError(f"decoded={self.decoded} is more than the clip_length={self.clip_length} frames there are")
        return self


class TrainingConfig(_Section):
    """The training loop."""

    steps: NonNegativeInt = Field(default=100_000, description="Optimiser updates of the whole model.")
    latent: LatentPhaseConfig = LatentPhaseConfig()
    termination_steps: NonNegativeInt = Field(
        default=0,
        description="Updates of the termination head alone when all else is trained, on the states of all recordings; "
        "0: none. Dreams foresee rare ends, such as run lights, better for it.",
    )
    batch_size: AtLeastOne = Field(default=16, description="Clips in one micro-batch, over all devices.")
    accumulation: AtLeastOne = Field(default=4, description="Micro-batches in one update.")
    clip_length: int = Field(default=10, ge=3, description="Frames in a clip.")
    context: AtLeastOne = Field(default=3, description="Frames the model observes before it has to predict the rest.")
    context_range: tuple[int, int] | None = Field(
        default=None,
        description="Fewest and most such frames, drawn anew in each training update; None: always context.",
    )
    beginning_share: Share = Field(
        default=0.0,
        description="Share of the training clips that are beginnings of episodes, which are rare and unlike the rest.",
    )
    ending_share: Share = Field(
        default=0.0,
        description="Share of the training clips that are moved to the end of their episode, where alone is seen what "
        "ends one: at any step of the clip, so that an end does not look like the end of a clip.",
    )
    mirror_share: Share = Field(
        default=0.0,
        description="Share of the training clips that are mirrored, left for right, with their steering negated; for "
        "driving actions, and where the task does not tell left from right (a race track, not a road with traffic).",
    )
    decode_fraction: PositiveShare = Field(
        default=1.0, description="Share of a clip's time steps that are decoded in a training update."
    )
    learning_rate: PositiveFloat = 3e-4
    final_learning_rate: PositiveShare = Field(
        default=1.0, description="Learning rate at the end, as a share of learning_rate (cosine decay)."
    )
    weight_decay: NonNegativeFloat = 0.0
    warmup_steps: NonNegativeInt = Field(default=1000, description="Updates of linear warm-up.")
    kl_start: NonNegativeInt = Field(
        default=0,
        description="Updates before the KL terms count, at most half of steps, in a training from nothing. Until the "
        "decoder has learnt to use the latent, they are all that moves it, and with some seeds it then tells nothing "
        "of the frames for good.",
    )
    clip_norm: PositiveFloat = Field(default=1.0, description="Largest norm of the gradient.")
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = Field(
        default="auto",
        description="auto: bf16 where the GPU or the processor computes in it, else fp16 on a GPU, else 32-true.",
    )
    gradient_checkpointing: bool = Field(default=False, description="Recompute activations in the backward pass.")
    seed: NonNegativeInt = 0
    validation_fraction: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Share of episodes held out; of a single one, share of its time, at its end.",
    )
    validate_every: AtLeastOne = Field(default=500, description="Updates between validations.")
    validation_clips: AtLeastOne = Field(default=64, description="Clips in one validation.")
    validation_horizon: AtLeastOne = Field(default=30, description="Longest open-loop prediction that is validated.")
    keep: Literal["best", "last"] = Field(
        default="best", description="Which model the run gives: that of the lowest validation loss, or the last."
    )
    checkpoint_overhead: PositiveShare = Field(
        default=0.05, description="A checkpoint is written as often as costs at most this share of the time."
    )
    num_start_states: AtLeastOne = Field(
        default=4096, description="Real states kept in the bundle to start dreams from."
    )

    @property
    def updates(self) -> int:
        """Optimiser updates of both phases."""
        return self.steps + self.latent.steps

    @model_validator(mode="after")
    def _phases_fit(self) -> TrainingConfig:
        if self.updates < 1:
            raise ValueError("training.steps and training.latent.steps are both 0; one of them must be at least 1")
        if self.latent.steps and self.context >= self.latent.clip_length:
            raise ValueError(
                f"context={self.context} must be smaller than latent.clip_length={self.latent.clip_length}"
            )
        if self.context >= self.clip_length:
            raise ValueError(f"context={self.context} must be smaller than clip_length={self.clip_length}")
        if (
            self.context_range is not None
            and not 1 <= self.context_range[0] <= self.context_range[1] < self.clip_length
        ):
            raise ValueError(
                f"context_range={list(self.context_range)} must rise from at least 1 to less than "
                f"clip_length={self.clip_length}"
            )
        return self


class Config(_Section):
    """Everything that a world model's training is made from."""

    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()


def preset_names() -> tuple[str, ...]:
    """Names of the presets that the package ships."""
    folder = resources.files("wm_gym") / "configs"
    return tuple(sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".yaml")))


def load_config(name_or_path: str | Path, changes: Iterable[str] = ()) -> Config:
    """Read a preset by name, or a YAML file, and apply ``key=value`` changes.

    Args:
        name_or_path: ``"tiny"``, ``"compact"``, ... or the path of a YAML file.
        changes: For example ``["training.steps=100", "model.latent_dim=64"]``; values are read as YAML.

    Raises:
        ConfigError: Unknown preset or key, unreadable file, or a value of the wrong type or out of range.
    """
    path = Path(name_or_path)
    if path.suffix not in {".yaml", ".yml"}:
        if str(name_or_path) not in preset_names():
            raise ConfigError(
                f"there is no config {str(name_or_path)!r}{did_you_mean(str(name_or_path), preset_names())}; "
                f"use one of {', '.join(preset_names())}, or the path of a .yaml file."
            )
        path = Path(str(resources.files("wm_gym") / "configs" / f"{name_or_path}.yaml"))
    values = read_yaml(path, error=ConfigError, remedy="correct the file, or use a preset")
    return parse_config(Config, values, changes, origin=f"config {str(name_or_path)!r}")


def parse_config(schema: type[ConfigT], values: Any, changes: Iterable[str] = (), *, origin: str) -> ConfigT:
    """Validate a mapping of settings, with changes applied, against a configuration class.

    Args:
        schema: The configuration class.
        values: A (nested) mapping, as read from YAML.
        changes: ``key=value`` texts with dotted keys.
        origin: What to call the source in messages, for example ``"config 'tiny'"``.

    Raises:
        ConfigError: With one sentence on the first thing that is wrong.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{origin} must hold a mapping of settings, not {type(values).__name__}.")
    merged: dict[str, Any] = _copy_nested(values)
    for change in changes:
        _apply_change(merged, change)
    try:
        return schema.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(_first_problem(schema, error, origin)) from error


def _copy_nested(values: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(key): _copy_nested(value) if isinstance(value, Mapping) else value for key, value in values.items()}


def _apply_change(values: dict[str, Any], change: str) -> None:
    key, separator, text = change.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise ConfigError(f"--set {change!r} is not of the form key=value, as in --set training.steps=1000.")
    value = parse_value(text, f"the value of --set {change!r}")
    if isinstance(value, str):
        # YAML 1.1 reads 3e-4 as text; the user means a number.
        with suppress(ValueError):
            value = float(value)
    section = values
    for part in parts[:-1]:
        inner = section.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {change!r}: {part!r} is a value, not a group of settings.")
        section = inner
    section[parts[-1]] = value


def parse_value(text: str, origin: str) -> Any:
    """The value of a setting on the command line, read as YAML.

    Args:
        text: What stands behind the ``=``.
        origin: What to call it in the message.

    Raises:
        ConfigError: It is no YAML.
    """
    try:
        return parse_yaml(text)
    except NotPlainError as error:
        raise ConfigError(f"{origin} {str(error).removeprefix('is damaged: it ')}; correct it.") from error


def _first_problem(schema: type[BaseModel], error: ValidationError, origin: str) -> str:
    problem = error.errors()[0]
    location = [str(part) for part in problem["loc"]]
    if problem["type"] == "extra_forbidden":
        known = _keys_at(schema, location[:-1])
        where = f" in {'.'.join(location[:-1])!r}" if location[:-1] else ""
        hint = did_you_mean(location[-1], known)
        return f"{origin} has an unknown key {location[-1]!r}{where}{hint}; the known keys are {', '.join(known)}."
    message = problem["msg"].removeprefix("Value error, ")
    where = f" at {'.'.join(location)!r}" if location else ""
    given = f" (given: {reprlib.repr(problem['input'])})" if problem["type"] != "value_error" else ""
    return f"{origin} is wrong{where}: {message[:1].lower()}{message[1:]}{given}."


def _keys_at(schema: type[BaseModel], location: list[str]) -> list[str]:
    for part in location:
        annotation = schema.model_fields[part].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            schema = annotation
    return list(schema.model_fields)
