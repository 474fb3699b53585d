"""The model card of a release, made from its manifest (https://huggingface.co/docs/hub/model-cards)."""

import html
import re
from collections.abc import Iterator

from stream_learner.contract.manifest import Decision, encode
from stream_learner.contract.spans import describe_position, each, row_positions
from stream_learner.contract.window import COMBINED, Accuracy
from stream_learner.follow.releases import Release
from stream_learner.text import printable

MAX_CLASSES = 1000
"""Classes in the card's table, lowest recall first."""
MARKDOWN = re.compile(r"([\\`*_\[\]#|~])")


def model_card(release: Release) -> str:
    """Return the model card, Markdown after a YAML header."""
    manifest, described = release.manifest, release.described
    shown, model = described.preprocessing, described.model
    return "\n".join(
        [
            "---",
            *_header(release),
            "---",
            "",
            f"# {_text(manifest.run_id)}, release {described.sequence}",
            "",
            f"An image classifier, learned incrementally from a Kafka stream by {_text(manifest.program)}. "
            f"It was released at {described.created_at} (epoch {manifest.epoch}, sequence {described.sequence}).",
            "",
            f"* Network: `{_code(model.name)}`, {model.arguments.classes} outputs, weights in {_text(described.dtype)}",
            f"* Input: uint8 [N, {shown.height}, {shown.width}, {shown.channels}] ({_text(shown.layout)}). "
            "`preprocessor_config.json` describes the preprocessing. The network itself computes "
            "(pixels / 255 - mean) / std.",
            f"* Digest of `model.safetensors`: `{described.object.digest}`",
            f"* Object: `{_code(manifest.url(described.object))}`",
            "",
            "## Data",
            "",
            *_data(release),
            "",
            "## Labels",
            "",
            ", ".join(_text(str(label)) for label in release.labels) or "None.",
            *_retired(release),
            "",
            "## Accuracy",
            "",
            *_accuracy(release),
            "",
            "## Decision to release",
            "",
            *_decision(release),
            "",
            "## Weighting",
            "",
            *_weighting(release),
            "",
            "## Limits",
            "",
            *_limits(release),
            "",
        ]
    )


def _header(release: Release) -> Iterator[str]:
    """Yield lines of YAML. JSON is YAML, so strings of the manifest are written as JSON."""
    test = release.described.test
    yield "library_name: stream-learner"
    yield "pipeline_tag: image-classification"
    yield "tags: [stream-learner, continual-learning, image-classification]"
    if test.accuracy is None or test.mean_recall is None:
        return
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"name": f"Test samples of {', '.join(release.manifest.learned_positions)}", "type": "kafka"},
        "metrics": [
            {"type": "accuracy", "value": test.accuracy, "name": f"Accuracy on {test.total} samples"},
            {"type": "recall", "value": test.mean_recall, "name": "Mean recall"},
        ],
    }
    index = [{"name": release.manifest.run_id, "results": [result]}]
    yield f"model-index: {printable(encode(index).decode())}"


def _data(release: Release) -> Iterator[str]:
    manifest = release.manifest
    yield "Records of these partitions, up to the next offset, were learned or held out:"
    yield ""
    yield "| topic | partition | next offset |"
    yield "|---|---|---|"
    for topic, partition, position in each(row_positions(manifest.learned_positions, manifest.rows)):
        yield f"| {_text(topic)} | {partition} | {describe_position(*position)} |"
    if not release.is_of_its_manifest:
        yield ""
        yield f"These are the offsets of checkpoint {manifest.sequence}, which was saved after the release."


def _retired(release: Release) -> Iterator[str]:
    if release.described.retired:
        names = [_text(str(release.labels[index])) for index in release.described.retired]
        yield ""
        yield f"Never predicted, because they are retired: {', '.join(names)}."


def _accuracy(release: Release) -> Iterator[str]:
    described = release.described
    validation, test = described.validation, described.test
    yield "Validation and test samples were held out and never learned. Validation samples decided the release."
    yield ""
    yield "| samples | n | accuracy | mean recall |"
    yield "|---|---|---|---|"
    for name, figures in ("validation", validation), ("test", test):
        yield f"| {name} | {figures.total} | {_share(figures.accuracy)} | {_share(figures.mean_recall)} |"
    if described.calibration_error is not None:
        yield ""
        yield f"Expected calibration error on the validation samples: {described.calibration_error:.4f}."
    if described.forgetting and described.forgetting.mean is not None:
        yield ""
        yield f"Mean forgetting on the test samples: {described.forgetting.mean:.4f}."
    yield from _per_class(test)


def _per_class(test: Accuracy) -> Iterator[str]:
    if not test.per_class:
        return
    lowest_first = sorted(test.per_class, key=lambda one: (one.correct / one.total, str(one.label)))
    yield ""
    yield "| label | n (test) | correct | recall |"
    yield "|---|---|---|---|"
    for one in lowest_first[:MAX_CLASSES]:
        yield f"| {_text(str(one.label))} | {one.total} | {one.correct} | {one.correct / one.total:.4f} |"
    if len(lowest_first) > MAX_CLASSES:
        yield ""
        yield f"{len(lowest_first) - MAX_CLASSES} classes of higher recall are left out."


def _decision(release: Release) -> Iterator[str]:
    decision = release.manifest.decision
    if decision is None or not release.is_of_its_manifest:
        yield f"The manifest of checkpoint {release.described.sequence} holds the decision."
        return
    yield _text(decision.reason)
    yield ""
    yield from _scores(decision)


def _scores(decision: Decision) -> Iterator[str]:
    yield (
        f"Mean recall on {decision.samples} validation samples: {_share(decision.candidate)} (this release), "
        f"{_share(decision.last)} (the release before)."
    )
    if decision.p_value is not None:
        yield f"McNemar test: p = {decision.p_value:.4g}."


def _weighting(release: Release) -> Iterator[str]:
    weights = release.manifest.weights
    if COMBINED not in weights:
        yield "The manifest has no figures of the samples' weights."
        return
    yield "The weight of a training sample is the product of its factors, clipped. It multiplies the sample's loss."
    yield "All samples of this epoch:"
    yield ""
    yield "| factor | samples | mean | minimum | maximum |"
    yield "|---|---|---|---|---|"
    for name, found in weights.items():
        shown = "weight" if name == COMBINED else _text(name)
        yield f"| {shown} | {found.count} | {found.mean:.4g} | {found.min:.4g} | {found.max:.4g} |"
    if not release.is_of_its_manifest:
        yield ""
        yield f"Samples up to checkpoint {release.manifest.sequence} are included."


def _limits(release: Release) -> Iterator[str]:
    manifest, test = release.manifest, release.described.test
    yield "* The model knows only the labels above. It gives one of them to any image."
    yield f"* The accuracy was measured on {test.total} images of the same stream, not on other data."
    tested = {one.label for one in test.per_class}
    if untested := [label for label in release.labels if label not in tested]:
        yield f"* Without test samples: {', '.join(_text(str(label)) for label in untested[:MAX_CLASSES])}."
    if manifest.omitted:
        names = _text(", ".join(manifest.omitted))
        yield f"* The manifest was too large for its topic, so these lists are empty: {names}."
    for form, why in release.described.missing_formats.items():
        yield f"* Without {_text(form)}: {_text(why)}."


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def _text(text: str) -> str:
    """Return text from outside as Markdown that shows it."""
    return MARKDOWN.sub(r"\\\1", html.escape(printable(text), quote=False))


def _code(text: str) -> str:
    return printable(text).replace("`", "'")
