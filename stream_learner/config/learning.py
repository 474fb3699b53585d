"""Settings of the network, its training and its evaluation."""

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
    """Network: a name from `stream_learner.registry.MODELS`, `timm:NETWORK` (a network of timm), or
    `package.module:factory`."""
    weights: Path | None = None
    """Pretrained backbone to start from: a safetensors file. Its tensors have the names of the network's state dict, or
    the names that torchvision or timm uses. A head in the file is ignored. A run must keep the same file; the worker
    checks its digest."""
    freeze: bool | None = None
    """Whether the backbone, including batch normalisation, stays unchanged, so that only the head learns. When unset,
    the backbone is frozen if `head` is a solved head, and learns if `head` is `linear`."""
    head: Annotated[str, AfterValidator(HEADS.known)] = "linear"
    """Classifier of the backbone's features. `linear` is trained by the strategy. The other heads are solved from sums
    over all samples, forget nothing and need a frozen backbone: `prototype` (nearest class mean), `ridge` (ridge
    regression), `random_features` (ridge regression on random features, RanPAC), or `package.module:name`. A solved
    head uses no strategy, optimizer or replay memory."""
    random_features: Annotated[PositiveInt, Field(le=MAX_RANDOM_FEATURES)] = 2_000
    """Number of random features of the head `random_features`. The state holds 8 bytes for each pair of features."""
    height: Annotated[PositiveInt, Field(le=MAX_SIDE_PIXELS)] = 32
    """Height in pixels that images are resized to."""
    width: Annotated[PositiveInt, Field(le=MAX_SIDE_PIXELS)] = 32
    """Width in pixels that images are resized to."""
    channels: Literal[1, 3] = 3
    """1 for grey, 3 for RGB."""
    mean: list[float] = [0.5]
    """Mean to subtract from pixels in 0..1: one for all channels or one for each."""
    std: list[PositiveFloat] = [0.25]
    """Standard deviation to divide pixels by: one for all channels or one for each."""
    max_classes: Annotated[PositiveInt, Field(le=MAX_CLASSES)] = 1000
    """Largest number of classes at a time; retired classes do not count. Beyond this number, records with new labels
    become dead letters. You may raise it later. A worker does not start if its run has more classes."""

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
                f'head = "{self.head}" sums features, so it needs a frozen backbone: remove freeze = false (and set '
                'weights to a pretrained backbone), or set head = "linear"'
            )
        return self

    @property
    def frozen(self) -> bool:
        """Whether the backbone does not learn."""
        return self.freeze or self.head != "linear"


def _by_steps(value: Callable[[int], Any]) -> Any:
    """Return a field whose default depends on `steps_per_batch`."""
    return Field(default_factory=lambda earlier: value(earlier["steps_per_batch"]))


class LearningSettings(Section):
    strategy: Annotated[str, AfterValidator(STRATEGIES.known)] = "er_la"
    """Method of learning a batch: a name from `stream_learner.registry.STRATEGIES`, or `package.module:name`."""
    steps_per_batch: PositiveInt = 1
    """Optimizer steps on each batch. With more steps the model learns more from a batch, but the cost grows in
    proportion. The defaults of `augment`, `average_decay` and `learning_rate` depend on this number."""
    augment: list[Annotated[str, AfterValidator(AUGMENTATIONS.known)]] = _by_steps(
        lambda steps: ["crop", "flip", *(["color_jitter", "cutout"] if steps > 1 else [])]
    )
    """Augmentations of an image each time it is learned, in this order: names from
    `stream_learner.registry.AUGMENTATIONS`, or `package.module:name`. Leave out `flip` where left and right have a
    meaning, as in text. When unset, several steps per batch add `color_jitter` and `cutout`."""
    average_decay: Annotated[float, Field(ge=0, lt=1)] = _by_steps(lambda steps: 0.997 ** (1 / steps))
    """Decay per step of the moving average of weights and buffers. The average makes the predictions and is released. 0
    disables the average. When unset, the average covers the same number of batches for any number of steps."""
    optimizer: Literal["muon", "adam", "sgd"] = "muon"
    """Optimizer: Muon (Jordan et al. 2024), Adam (Kingma and Ba 2015) or SGD."""
    learning_rate: PositiveFloat = _by_steps(lambda steps: 0.005 / steps**0.5)
    """Learning rate. Muon and Adam take rates of the same order. SGD needs a larger rate. A pretrained network needs a
    smaller rate. When unset, it is 0.005 divided by the square root of `steps_per_batch`."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of Muon and SGD. Adam ignores it."""
    weight_decay: NonNegativeFloat = 0.0
    """L2 penalty of Adam and SGD, decoupled decay of Muon."""
    on_drift: Literal["none", "boost"] = "none"
    """Reaction to a drift, in addition to the report. `none`: no change. `boost`: another learning rate and replay size
    for a while, as set in `[drift]`."""
    device: str = "auto"
    """Device: `auto` (CUDA if available), `cpu`, `cuda` or `cuda:N`."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the training steps, and of the predictions before them. `auto` takes the faster arithmetic for the
    model on the device."""
    channels_last: Literal["auto"] | bool = "auto"
    """Whether images are in the memory layout channels-last. `auto` takes the faster layout for the model."""
    threads: NonNegativeInt = 0
    """Threads for arithmetic. 0 takes one thread per core, and at most the CPU limit of the container. It takes one
    thread if the run has several shards, or if more threads do not make the network faster, as with `mlp`. While other
    programs keep cores busy, 1 is faster for small networks. Only runs with the same number of threads give equal
    results."""


class WeightsSettings(Section):
    """Settings of the sample weights."""

    policies: list[Annotated[str, AfterValidator(WEIGHTS.known)]] = ["record"]
    """Factors of a sample's weight, which are multiplied: names from `stream_learner.registry.WEIGHTS`
    (`record`, `class_balance`, `recency`, `novelty`, `hardness`), or `package.module:name`."""
    max_weight: PositiveFloat = 10.0
    """Largest sample weight. Larger weights are clipped to it."""
    half_life_records: PositiveFloat | None = None
    """`recency`: number of input records after which a sample counts half."""
    half_life_s: PositiveFloat | None = None
    """`recency`, instead of `half_life_records`: seconds after which a sample counts half. Its age is computed from the
    timestamps of the records."""
    class_balance_beta: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    """`class_balance`: the effective number of a class's samples approaches 1 / (1 - beta). The nearer beta is to 1,
    the nearer weights are to inverse frequency. Classes with many more samples than 1 / (1 - beta) have the same
    weight."""

    @model_validator(mode="after")
    def _policies_fit(self) -> "WeightsSettings":
        if len(set(self.policies)) < len(self.policies):
            raise ValueError("policies must not repeat a name")
        if "recency" in self.policies and (self.half_life_records is None) == (self.half_life_s is None):
            raise ValueError("recency needs either half_life_records or half_life_s")
        return self


class PrequentialSettings(Section):
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the batches that are predicted before they are learned, above 0 up to 1, spread evenly. The prequential
    figures and the detection of drifts cover only these batches. A smaller share saves time. It saves none with a
    solved head, the strategy `derpp` or the weights `hardness`, which need each prediction. It also saves none without
    replay, average and augmentation, because then the step uses the prediction's features."""


class DriftSettings(Section):
    delta: Annotated[float, Field(gt=0, lt=1)] = 0.002
    """Confidence of the detector (ADWIN, Bifet and Gavalda 2007). Lower values give fewer false alarms and later
    detections."""
    boost_records: PositiveInt = 2_000
    """Input records after a drift during which learning is boosted, if `learning.on_drift` is `boost`."""
    boost_learning_rate: PositiveFloat = 1.5
    """Factor of the learning rate during a boost. With Muon's default rate keep it small: with 2 a CNN became less
    accurate than without a boost, and with 3 it stopped learning."""
    boost_replay: PositiveFloat = 1.0
    """Factor of the replay size during a boost. Above 1 the model keeps more of what it learned, which helps when new
    classes arrive. Below 1 it forgets sooner, which helps when labels have changed their meaning."""


class MemorySettings(Section):
    max_items: NonNegativeInt = 10_000
    """Samples kept for replay, over all classes. With small images this limit is reached far below `max_bytes`. With
    more classes than `max_items`, the oldest classes keep no samples. Each shard (`run.shards`) has an equal share."""
    max_bytes: NonNegativeInt = 256 * MIB
    """Bytes of the encoded images kept for replay, over all classes. Images that were dropped but not freed yet take at
    most the same amount in addition."""
    segment_bytes: Annotated[PositiveInt, Field(le=1024 * MIB)] = 16 * MIB
    """Bytes of images that make a segment. A full segment is written once, as a separate object. Newer images are
    written with every checkpoint until they fill a segment. The same applies to the held-out sets."""
    replay_size: PositiveInt | None = None
    """Samples replayed in each step; three times `batch.size` when unset. Replay more samples than `batch.size`.
    Otherwise a long series of one class ruins the head."""


class HeldOutSettings(Section):
    max_items: PositiveInt = 2_000
    """Samples in each held-out set (validation, test), over all classes."""
    max_bytes: PositiveInt = 64 * MIB
    """Bytes of the pixels in each held-out set."""
