"""The JSON record that names a checkpoint's state and the last released model."""

import hashlib
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from stream_learner.contract import documents, keys
from stream_learner.contract.documents import Count, Digest, Epoch, RunId, Sequence, Text, Time
from stream_learner.contract.ledger import Ledger
from stream_learner.contract.objects import Chunk, Earlier, Object, Published, State
from stream_learner.contract.spans import Offset, Partition, Positions, RowsRead, Span, Spans, Stretches, Topic, each
from stream_learner.contract.vocabulary import Label
from stream_learner.contract.window import Accuracy, Distribution, Forgetting

# Bounds of the networks that a manifest may describe.
MAX_SIDE_PIXELS = 4096
MAX_CLASSES = 65_536
MAX_RANDOM_FEATURES = 65_536
MANIFEST_SCHEMA_VERSION = 6


class OnnxGraph(msgspec.Struct, frozen=True, kw_only=True):
    """The network as an ONNX graph without its parameters.

    The graph maps `images`, uint8 [N, H, W, C], to `logits` and `probabilities`, float32 [N, classes]. Its initializer
    `network.NAME` is the tensor NAME of the release, given to ONNX Runtime by `add_external_initializers`.
    """

    published: Published
    unused: list[Text]
    """Tensors of the release that the graph does not have, such as the counters of batch normalisation."""
    compared: Count
    """Number of the evaluation object's images for which ONNX Runtime gave the same predictions as PyTorch."""


Side = Annotated[int, Meta(ge=1, le=MAX_SIDE_PIXELS)]


class ModelArguments(msgspec.Struct, frozen=True, kw_only=True):
    """Arguments of a network's class. `random_features` is the number of random features between body and head."""

    classes: Annotated[int, Meta(ge=0, le=MAX_CLASSES)]
    height: Side
    width: Side
    channels: Literal[1, 3]
    mean: Annotated[list[float], Meta(min_length=1, max_length=3)]
    std: Annotated[list[Annotated[float, Meta(gt=0)]], Meta(min_length=1, max_length=3)]
    random_features: Annotated[int, Meta(ge=0, le=MAX_RANDOM_FEATURES)] = 0


class ModelSpec(msgspec.Struct, frozen=True):
    """The network: its name in the model registry (or `package.module:name`) and its arguments."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    arguments: ModelArguments


class Preprocessing(msgspec.Struct, frozen=True):
    """How an image becomes the network's input.

    Decode, turn upright, composite over `background`, convert to `channels` (1: grey, 3: RGB), resize to `height` x
    `width` with the `resize` filter, keep uint8 in layout NHWC. The network itself computes
    (pixels / 255 - mean) / std.
    """

    height: int
    width: int
    channels: int
    mean: list[float]
    std: list[float]
    resize: str = "bilinear, antialiased (Pillow Image.resize)"
    layout: str = "NHWC"
    dtype: str = "uint8"
    orientation: str = "EXIF orientation applied (JPEG and PNG)"
    background: tuple[int, int, int] = (255, 255, 255)
    """Color behind transparent pixels."""
    color_space: str = "sRGB (ICC profiles and gamma are not applied)"
    sample_depth: str = "16 bits: the high byte (fewer by sBIT: scaled); 1, 2 and 4 bits: scaled to 0..255"


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """A model that downstream may use."""

    sequence: Sequence
    """Sequence of the checkpoint that released it."""
    created_at: Time
    object: Object
    """Weights as safetensors, under the names in the network's state dict."""
    chunks: list[Chunk]
    """The same bytes in the weights topic; empty if they exceed `release.inline_max_bytes`."""
    model: ModelSpec
    labels: list[Label]
    """Label of each output, in order."""
    retired: list[Count] = []
    """Outputs that are never predicted: their labels have become aliases or are no longer allowed."""
    preprocessing: Preprocessing
    dtype: Text
    """Type of the weights."""
    validation: Accuracy
    test: Accuracy
    """Accuracy on the evaluation object's images."""
    calibration_error: float | None = None
    """Expected calibration error on the validation samples (Guo et al. 2017)."""
    forgetting: Forgetting | None = None
    """How far recall is below the best recall of earlier releases. Each release's recall is measured on the images of
    its own evaluation object."""
    evaluation: Object
    """The test samples, as safetensors: `images` uint8 [N, H, W, C], `labels` int64 [N] (indices into the label map;
    -1: a label the model does not know), `predictions` int64 [N]."""
    canary: Published
    """A few images of `evaluation` with the network's logits, as safetensors: `images` uint8 [N, H, W, C], `logits`
    float32 [N, classes]. A reader that computes other predictions must not use the release."""
    onnx: OnnxGraph | None = None
    missing_formats: dict[Text, Text] = {}
    """Formats of `release.formats` that this release does not have, and the reasons."""
    manifest: Object | None = None
    """The manifest of this release's checkpoint, for readers that need it after the history topic has lost it. There,
    `release` has no `chunks` and no `manifest`. None if a version of this program without this field made the release.
    """

    def as_earlier(self) -> Earlier:
        """Return this release as later manifests list it."""
        return Earlier(
            sequence=self.sequence,
            created_at=self.created_at,
            object=self.object,
            evaluation=self.evaluation,
            canary=self.canary.object,
            onnx=self.onnx and self.onnx.published.object,
            manifest=self.manifest,
            classes=self.model.arguments.classes,
            validation=self.validation.overall,
            test=self.test.overall,
        )


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The gate's verdict on a candidate. Scores are mean recall (0..1) over the classes of the validation samples. The
    candidate and the last release are scored on the same samples."""

    released: bool
    abstained: bool
    """Whether the candidate was released without a comparison, because there were too few held-out samples or no
    earlier release."""
    worse: bool = False
    """Whether the candidate was refused because it was worse than the last release. If `release.rule` is `max_drop`,
    worse means by more than `release.max_drop`. With the other rules, worse means significantly worse. With any rule, a
    candidate is also worse if `old_class_drop` exceeds `release.max_old_class_drop`. Such refusals count toward
    `release.patience`."""
    candidate: float | None
    last: float | None
    """Score of the last release on the current validation samples."""
    samples: Count
    reason: Text
    both_right: Count | None = None
    """Number of samples that both models predict correctly. Without a last release, this field and all following ones
    are None."""
    only_last_right: Count | None = None
    """Number of samples that only the last release predicts correctly."""
    only_candidate_right: Count | None = None
    p_value: float | None = None
    """One-sided exact McNemar test of the difference of the scores: the probability of a difference at least as large
    if both models were equally good. If `release.rule` is `not_worse`, the test is whether the candidate is worse. If
    the rule is `better`, the test is whether the candidate is better. None when not tested."""
    negative_flip_rate: float | None = None
    """Share (0..1) of the validation samples that only the last release predicts correctly (Yan et al. 2021)."""
    old_class_drop: float | None = None
    """Mean recall of the last release minus mean recall of the candidate, over the classes that the last release knows.
    Negative if the candidate's mean recall is higher."""


class Arithmetic(msgspec.Struct, frozen=True):
    """Software, hardware and settings on which the bytes of a state depend, besides the data."""

    torch: Text
    """Version of PyTorch."""
    device: Text
    """`cpu` or a GPU's name."""
    instructions: Text
    """The CPU's vector instructions that PyTorch uses."""
    threads: Count
    settings: Digest
    """Digest of the settings that decide what is learned from given batches."""
    precision: Text | None = None
    """`bf16` or `fp32`, as the worker chose it; None if an older version of this program wrote the manifest."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A record of the checkpoints and history topics. Times are ISO 8601 in UTC."""

    schema_version: int = MANIFEST_SCHEMA_VERSION
    program: Text
    """Name and version of the program that wrote this manifest."""
    run_id: RunId
    epoch: Epoch
    """1, and one more each time that the run is started over (`run --fresh`)."""
    sequence: Sequence
    """1 for the epoch's first checkpoint, then one more for each checkpoint."""
    predecessor: Digest | None
    """Digest of the previous manifest's bytes; None at sequence 1."""
    created_at: Time
    positions: Positions
    """Next offset to read, per topic and partition."""
    rows: RowsRead = {}
    """Number of rows that were learned of the message at the position, for partitions where some were, but not all."""
    spans: Spans
    """Offsets learned since the previous manifest."""
    lost: Stretches
    """Offsets in `spans` whose records were lost before they were read: retention deleted the records, or they were
    damaged on the brokers' disks."""
    ledger: Ledger
    """The offsets in each batch."""
    arithmetic: Arithmetic
    """The software and hardware that computed the state. If they are the same, learning the ledger's batches again from
    the previous state gives the same bytes."""
    store: Text
    """URL of the store when this manifest was written, without credentials. An object's URL is `<store>/<key>`. Readers
    may know a newer URL, because a store can be moved."""
    topic_ids: dict[Topic, Text]
    """Kafka's id of each input topic and of the checkpoints topic."""
    state: Object
    kept: Annotated[list[State], Meta(min_length=1)]
    """The saved states that exist, in order of sequence. The last of these states is `state`."""
    parts: list[Object]
    """Objects that belong to states in `kept`: sealed segments of the memory. Several states may share an object."""
    released: bool
    """Whether this checkpoint released a model."""
    decision: Decision | None
    """The gate's verdict; None when this checkpoint only saved."""
    release: Release | None
    """The last released model."""
    earlier: list[Earlier] = []
    """The earlier releases whose objects exist, in order of sequence."""
    rolled_back_to: Sequence | None = None
    """Sequence of the release that training went back to, because the refusal of this checkpoint's candidate reached
    the limit (`release.patience`)."""
    poisoned: dict[Topic, dict[Partition, list[Offset]]] = {}
    """Offsets among `spans` whose records were set aside without being decoded, because they ended the process."""
    poisoned_rows: dict[Topic, dict[Partition, list[tuple[Offset, Count]]]] = {}
    """Offset and index of rows that were set aside in the same way, while the other rows of their messages were not."""
    discarded: Spans = {}
    """Offsets whose learning was undone because training went back. They are not read again."""
    weights: dict[Text, Distribution] = {}
    """Factors of all samples that were learned in this epoch, by policy, as in `Window.weights`. Samples whose learning
    was undone are included."""
    omitted: list[Text] = []
    """Lists of the release that were left empty, because the full manifest would exceed the topic's size limit."""

    @property
    def order(self) -> tuple[int, int]:
        """Epoch and sequence. A run's newest manifest has the highest values."""
        return self.epoch, self.sequence

    def url(self, reference: Object) -> str:
        """Return the URL that the object had when this manifest was written."""
        return f"{self.store}/{reference.key}"

    def objects(self) -> list[Object]:
        """Return all objects that this manifest names. No other objects of checkpoints need to exist."""
        releases = [*self.earlier, *([self.release.as_earlier()] if self.release else [])]
        named = [state.object for state in self.kept] + self.parts
        return named + [found for release in releases for found in release.objects()]

    def parts_of(self, state: State) -> list[Object]:
        """Return the parts of one of the kept states."""
        return [self.parts[place] for place in state.parts]

    @property
    def learned_positions(self) -> Positions:
        """Positions in the input topics, without the positions in the topic of served predictions."""
        suffix = ".checkpoints"
        own = {t.removesuffix(suffix) + ".predictions" for t in self.topic_ids if t.endswith(suffix)}
        return {topic: partitions for topic, partitions in self.positions.items() if topic not in own}

    def released_state(self) -> State | None:
        """Return the state that was saved with the last release; None before the first release."""
        wanted = self.release.sequence if self.release else None
        return next((state for state in self.kept if state.sequence == wanted), None)


def digest(data: bytes | memoryview) -> str:
    """Return the SHA-256 digest of the data: `sha256:` and 64 hex digits."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def encode(document: Any) -> bytes:
    """Return the JSON bytes of a manifest or window. Keys are in the order of the type's fields."""
    return msgspec.json.encode(document)


class NewerVersionError(ValueError):
    """Error for a manifest of the run `run_id` that a newer version of this program wrote."""

    def __init__(self, message: str, run_id: str):
        super().__init__(message)
        self.run_id = run_id


def decode_manifest(data: bytes) -> Manifest:
    """Decode and check a manifest.

    Raises ValueError when the bytes are not a manifest of a schema version that this program knows, or contradict
    themselves.
    """
    try:
        version = documents.decode(data, _Versioned)
    except ValueError as error:
        raise ValueError(f"not a manifest: {error}") from None
    if version.schema_version != MANIFEST_SCHEMA_VERSION:
        what = f"manifest schema version {version.schema_version}; this program reads {MANIFEST_SCHEMA_VERSION}"
        if version.schema_version > MANIFEST_SCHEMA_VERSION:
            raise NewerVersionError(what, version.run_id)
        raise ValueError(what)
    try:
        manifest = documents.decode(data, Manifest)
        _check_times(manifest)
        _check_keys(manifest)
    except ValueError as error:
        raise ValueError(f"not a manifest: {error}") from None
    if wrong := next(contradictions(manifest), None):
        raise ValueError(f"not a manifest: {wrong}")
    return manifest


def _check_times(manifest: Manifest) -> None:
    documents.check_time(manifest.created_at)
    if manifest.release:
        documents.check_time(manifest.release.created_at)
    for earlier in manifest.earlier:
        documents.check_time(earlier.created_at)


def _check_keys(manifest: Manifest) -> None:
    """Raise ValueError when the program would not choose a key in the manifest for its object."""
    run_id = manifest.run_id
    keys.check_object(manifest.state.key, run_id, manifest.sequence, keys.STATE)
    for kept in manifest.kept:
        keys.check_object(kept.object.key, run_id, kept.sequence, keys.STATE)
    for part in manifest.parts:
        keys.check_part(part.key, run_id)
    for release in [*manifest.earlier, *([manifest.release.as_earlier()] if manifest.release else [])]:
        keys.check_object(release.object.key, run_id, release.sequence, keys.RELEASE)
        keys.check_object(release.evaluation.key, run_id, release.sequence, keys.EVALUATION)
        keys.check_object(release.canary.key, run_id, release.sequence, keys.CANARY)
        if release.onnx:
            keys.check_object(release.onnx.key, run_id, release.sequence, keys.ONNX)
        if release.manifest:
            keys.check_object(release.manifest.key, run_id, release.sequence, keys.MANIFEST)


def contradictions(manifest: Manifest) -> Iterator[str]:
    """Yield contradictions between fields. The types of the fields cannot exclude them."""
    release, decision = manifest.release, manifest.decision
    kept = [state.sequence for state in manifest.kept]
    if manifest.run_id in (".", ".."):
        yield "the run's folder would be outside of the store"
    if (manifest.predecessor is None) != (manifest.sequence == 1):
        yield "only the manifest with sequence 1 has no predecessor"
    if kept != sorted({*kept}) or kept[-1] != manifest.sequence or manifest.kept[-1].object != manifest.state:
        yield "`kept` is not in order of sequence, or does not end with `state`"
    if any(place >= len(manifest.parts) for state in manifest.kept for place in state.parts):
        yield "a state has parts that are not in `parts`"
    if any(span.start > span.end for spans in (manifest.spans, manifest.discarded) for _, _, span in each(spans)):
        yield "a span ends before it starts"
    for topic, partition, span in each(manifest.spans):
        if manifest.positions.get(topic, {}).get(partition) != span.end:
            yield f"the position of {topic}[{partition}] is not where its span ends"
    if any(partition not in manifest.positions.get(topic, {}) for topic, partition, _ in each(manifest.rows)):
        yield "a partition has rows, but no position"
    for topic, partition, stretches in each(manifest.lost):
        around = manifest.spans.get(topic, {}).get(partition, Span(0, 0))
        if not all(around.start <= lost.start <= lost.end <= around.end for lost in stretches):
            yield f"lost offsets of {topic}[{partition}] are not in its span"
    if manifest.released and not (decision and decision.released and release and release.sequence == manifest.sequence):
        yield "its release does not match its decision"
    if manifest.rolled_back_to is not None and manifest.rolled_back_to != (release and release.sequence):
        yield "training went back to another release than the last"
    releases = [earlier.sequence for earlier in manifest.earlier] + ([release.sequence] if release else [])
    if releases != sorted({*releases}) or (manifest.earlier and not release):
        yield "`earlier` is not in order of sequence, or does not end before the last release"
    if release:
        if release.sequence not in kept:
            yield "the state of the last release is not kept"
        arguments, shown = release.model.arguments, release.preprocessing
        if len({*release.labels}) != len(release.labels) or len(release.labels) != arguments.classes:
            yield "the labels do not fit the model's classes"
        if release.retired != sorted({*release.retired} & {*range(arguments.classes)}):
            yield "`retired` is not a sorted list of outputs of the model"
        names = "height", "width", "channels", "mean", "std"
        if any(getattr(shown, name) != getattr(arguments, name) for name in names):
            yield "`preprocessing` does not fit the model's arguments"


class _Versioned(msgspec.Struct):
    schema_version: int
    run_id: str = ""
