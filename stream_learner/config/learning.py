"""Settings of the network, and of how it learns and is evaluated."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from stream_learner.config.fields import MIB, Section
from stream_learner.contract.manifest import MAX_CLASSES, MAX_RANDOM_FEATURES, MAX_SIDE_PIXELS
from stream_learner.registry import AUGMENTATIONS, HEADS, MODELS, STRATEGIES, WEIGHTS


class ModelSettings(Section):
    name: Annotated[str, AfterValidator(MODELS.known)] = "cnn"
    """Network: a name from `stream_learner.registry.MODELS`, `timm:NETWORK` (one of timm's), or
    `package.module:factory`."""
    weights: Path | None = None
    """A pretrained backbone to begin with: a file of safetensors whose names are those of the network's state dict, or
    of its body's as torchvision and timm have them; a head in it is ignored. A run stays with one file, by digest."""
    freeze: bool | None = None
    """Whether the backbone stays as it is, batch normalisation included, and only the head learns. When unset it does
    under a head that is solved, which needs that, and learns under another."""
    head: Annotated[str, AfterValidator(HEADS.known)] = "linear"
    """What classifies the backbone's features: `linear`, trained by the strategy, or a head that is solved from sums
    over all samples and forgets nothing, under a frozen backbone: `prototype` (nearest class mean), `ridge` (ridge
    regression), `random_features` (ridge regression on random features, RanPAC); or `package.module:name`. A solved
    head uses neither strategy nor optimizer nor replay memory."""
    random_features: Annotated[PositiveInt, Field(le=MAX_RANDOM_FEATURES)] = 2_000
    """Random features under the head `random_features`; the state holds 8 bytes for each pair of them."""
    height: Annotated[PositiveInt, Field(le=MAX_SIDE_PIXELS)] = 32
    """Height in pixels to which images are resized."""
    width: Annotated[PositiveInt, Field(le=MAX_SIDE_PIXELS)] = 32
    """Width in pixels to which images are resized."""
    channels: Literal[1, 3] = 3
    """1 for grey, 3 for RGB."""
    mean: list[float] = [0.5]
    """Mean subtracted from pixels in 0..1: one for all channels or one for each."""
    std: list[PositiveFloat] = [0.25]
    """Standard deviation that pixels are divided by: one for all channels or one for each."""
    max_classes: Annotated[PositiveInt, Field(le=MAX_CLASSES)] = 1000
    """Classes that may exist at a time; records with a label beyond become dead letters. It may be raised later; a
    worker does not start with fewer than its run has. Retired classes do not count."""

    @model_validator(mode="after")
    def _constants_fit_the_channels(self) -> "ModelSettings":
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, self.channels):
                raise ValueError(f"{name} needs 1 or {self.channels} values")
        return self

    @model_validator(mode="after")
    def _a_solved_head_has_a_frozen_backbone(self) -> "ModelSettings":
        if self.head != "linear" and self.freeze is False:
            raise ValueError(
                f'head = "{self.head}" adds up features, which a backbone that learns would change behind it: leave '
                'freeze out (and set weights to a pretrained backbone), or set head = "linear"'
            )
        return self

    @property
    def frozen(self) -> bool:
        """Whether the backbone stays as it is."""
        return self.freeze or self.head != "linear"


def _by_steps(value: Callable[[int], Any]) -> Any:
    """A field that, left out, has its value by `steps_per_batch`."""
    return Field(default_factory=lambda earlier: value(earlier["steps_per_batch"]))


class LearningSettings(Section):
    strategy: Annotated[str, AfterValidator(STRATEGIES.known)] = "er_la"
    """How a batch is learned: a name from `stream_learner.registry.STRATEGIES`, or `package.module:name`."""
    steps_per_batch: PositiveInt = 1
    """Optimizer updates made with each batch. More of them learn more from it, each costing as much as one; what is
    left out of `augment`, `average_decay` and `learning_rate` follows."""
    augment: list[Annotated[str, AfterValidator(AUGMENTATIONS.known)]] = _by_steps(
        lambda steps: ["crop", "flip", *(["color_jitter", "cutout"] if steps > 1 else [])]
    )
    """How images are varied each time they are learned, in this order: names from
    `stream_learner.registry.AUGMENTATIONS`, or `package.module:name`. Leave `flip` out where left and
    right mean something, as in text. Left out, several steps per batch add `color_jitter` and `cutout`."""
    average_decay: Annotated[float, Field(ge=0, lt=1)] = _by_steps(lambda steps: 0.997 ** (1 / steps))
    """Decay per step of the moving average of weights and buffers that predicts and is released; 0 keeps none. Left
    out, it averages over as many batches whatever the number of steps for each."""
    optimizer: Literal["muon", "adam", "sgd"] = "muon"
    """Optimizer: Muon (Jordan et al. 2024), Adam (Kingma and Ba 2015) or SGD."""
    learning_rate: PositiveFloat = _by_steps(lambda steps: 0.005 / steps**0.5)
    """Learning rate. Muon and Adam take rates of one size, SGD greater ones; a pretrained network wants less. Left out,
    it is divided by the square root of the steps per batch."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of Muon and SGD; Adam ignores it."""
    weight_decay: NonNegativeFloat = 0.0
    """L2 penalty of Adam and SGD; decoupled decay of Muon."""
    on_drift: Literal["none", "boost"] = "none"
    """What a drift changes, beside being reported: nothing, or rate and replay for a while, as `[drift]` says."""
    device: str = "auto"
    """`auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the training steps; `auto` is what is faster for the model on the device."""
    channels_last: Literal["auto"] | bool = "auto"
    """Memory layout of images; `auto` is what is faster for the model."""
    threads: NonNegativeInt = 0
    """Threads of the arithmetic; 0 is one per core. Equal results need equal numbers."""


class WeightsSettings(Section):
    policies: list[Annotated[str, AfterValidator(WEIGHTS.known)]] = ["record"]
    """Factors of a sample's weight, which are multiplied: names from `stream_learner.registry.WEIGHTS`
    (`record`, `class_balance`, `recency`, `novelty`, `hardness`), or `package.module:name`."""
    max_weight: PositiveFloat = 10.0
    """Sample weights above are clipped to this."""
    half_life_records: PositiveFloat | None = None
    """`recency`: input records after which a sample counts half."""
    half_life_s: PositiveFloat | None = None
    """`recency`, instead: seconds of event time (the records' timestamps) after which a sample counts half."""
    class_balance_beta: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    """`class_balance`: a class's effective number of samples goes to 1 / (1 - beta). Nearer to 1 is nearer to inverse
    frequency; classes with many more samples than that weigh the same, however rare one is beside the other."""

    @model_validator(mode="after")
    def _policies_fit(self) -> "WeightsSettings":
        if len(set(self.policies)) < len(self.policies):
            raise ValueError("policies names one twice")
        if "recency" in self.policies and (self.half_life_records is None) == (self.half_life_s is None):
            raise ValueError("recency needs half_life_records or half_life_s, and not both")
        return self


class DriftSettings(Section):
    delta: Annotated[float, Field(gt=0, lt=1)] = 0.002
    """Confidence of the detector (ADWIN, Bifet and Gavalda 2007): the lower, the fewer false alarms and the later the
    true ones."""
    boost_records: PositiveInt = 2_000
    """Input records after a drift during which learning is boosted, where `learning.on_drift` is `boost`."""
    boost_learning_rate: PositiveFloat = 1.5
    """What the learning rate is multiplied by meanwhile. Muon's default rate bears little more: at 2 a CNN ended lower
    than without, at 3 its units died."""
    boost_replay: PositiveFloat = 1.0
    """What the replay size is multiplied by meanwhile: above 1 guards what was known, which helps where new classes
    arrive; below 1 unlearns it sooner, which helps where labels have changed their meaning."""


class MemorySettings(Section):
    max_items: NonNegativeInt = 10_000
    """Samples kept for replay, over all classes; of small images far fewer than `max_bytes` would hold. With more
    classes than that, those that came first keep none."""
    max_bytes: NonNegativeInt = 256 * MIB
    """Bytes of the encoded images kept for replay, over all classes; those given up take as much again at
    most."""
    segment_bytes: Annotated[PositiveInt, Field(le=1024 * MIB)] = 16 * MIB
    """Bytes of images after which a checkpoint writes them into an object of their own, once; what is newer is written
    with each checkpoint. Also for the held-out sets."""
    replay_size: PositiveInt | None = None
    """Samples replayed in each step; three times `batch.size` when unset. With as many as are new, a stream that stays
    with one class would tell the model in half of each step that there is no other."""


class HeldOutSettings(Section):
    max_items: PositiveInt = 2_000
    """Samples in each held-out set (validation, test), over all classes."""
    max_bytes: PositiveInt = 64 * MIB
    """Bytes of the pixels in each held-out set."""
