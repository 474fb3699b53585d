"""A small run of a learner on random images from a fixed seed."""

from typing import Any

import msgspec
import numpy as np

from stream_learner.config import ModelSettings, Settings
from stream_learner.contract import tensors
from stream_learner.formats.record import Sample, Split
from stream_learner.learning.learner import Learner
from stream_learner.learning.outcome import Candidate
from stream_learner.learning.saved import Saved
from stream_learner.learning.state_dict import StateDict, join, split
from stream_learner.networks.tensors import as_arrays, as_tensors
from stream_learner.testing.checking import Checking

NOW_MS = 1_700_000_000_000
SMALL: dict[str, dict[str, Any]] = {
    "run": {"id": "check"},
    "input": {"topics": ["images"]},
    "model": {"name": "mlp", "height": 8, "width": 8, "channels": 1},
    "batch": {"size": 8},
    "memory": {"replay_size": 8},
    "learning": {"device": "cpu", "augment": [], "average_decay": 0.0},
    "release": {"min_held_out": 1, "patience": None},
}
# Settings for the second half of the stream: class b becomes class a, and class c is no longer allowed.
RETIRING = {"labels": {"allowed": [*"adef"], "aliases": {"b": "a"}}}
HALF = 5  # batches
# Buffers may hold infinities, such as the mask of an attention layer. Resuming refuses infinite parameters.
NETWORKS = ("trainer/model/", "trainer/average/")
TRAIN, VALIDATION, TEST = Split


class _SettingsAlone(Settings):
    """Settings that do not depend on environment variables."""

    @classmethod
    def settings_customise_sources(cls, settings_cls: Any, init_settings: Any, *others: Any, **named: Any) -> Any:
        del settings_cls, others, named
        return (init_settings,)


def small_settings(**sections: dict[str, Any]) -> Settings:
    """Return settings for a small run. Values in `sections` override the values in `SMALL`."""
    names = {*SMALL, *sections}
    return _SettingsAlone.model_validate({name: SMALL.get(name, {}) | sections.get(name, {}) for name in names})


def small_stream(model: ModelSettings) -> list[list[Sample]]:
    """Return batches in which some classes arrive late and weights vary.

    Some batches hold only one sample. In one batch all weights are 0, and one batch has no training sample.
    """
    rng = np.random.default_rng(0)
    shape = model.height, model.width, model.channels
    patterns = {label: rng.integers(0, 200, shape) for label in "abcdef"}
    parts: list[tuple[str, int, tuple[Split, ...], tuple[float, ...]]] = [
        ("ab", 8, (TRAIN,), (1.0,)),
        ("ab", 9, (TRAIN, VALIDATION, TEST), (1.0,)),
        ("c", 1, (TRAIN,), (1.0,)),
        ("abc", 8, (TRAIN,), (0.5, 2.0, 30.0, 0.0)),
        ("abc", 4, (TRAIN,), (0.0,)),
        ("de", 4, (VALIDATION, TEST), (1.0,)),
        ("ade", 9, (TRAIN, TEST), (1.0,)),
        ("adef", 12, (TRAIN, TRAIN, VALIDATION), (1.0, 3.0)),
        ("f", 1, (TRAIN,), (1.0,)),
    ]
    batches, number = [], 0
    for labels, count, splits, weights in parts:
        samples = []
        for i in range(count):
            label = labels[i % len(labels)]
            pixels_HWC = (patterns[label] + rng.integers(0, 56, shape)).astype(np.uint8)
            late_ms = 25_000 * (i % 3 == 2)
            samples.append(
                Sample(
                    key=f"images/0/{number}",
                    label=label,
                    pixels_HWC=pixels_HWC,
                    timestamp_ms=NOW_MS + 1000 * number - late_ms,
                    weight=weights[i % len(weights)],
                    split=splits[i % len(splits)],
                    group=number,
                )
            )
            number += 1
        batches.append(samples)
    return batches


def check_in_a_learner(check: Checking, settings: Settings, batches: int | None = None) -> Candidate:
    """Check that a learner ends in the same state if it is saved and resumed after each batch.

    The learner learns the first `batches` batches of the small stream, by default all. Return the last candidate for a
    release.
    """
    stream = small_stream(settings.model)[:batches]
    end, candidate = _end(check, settings, stream, resumes=False)
    if differing := _differing(end, _end(check, settings, stream, resumes=True)[0]):
        again = _differing(end, _end(check, settings, stream, resumes=False)[0])
        check.that(
            not again,
            f"two runs of a Learner with one seed differ in {', '.join(again)}; draw only from torch's default "
            "generator, and use no clock, no file and no state that instances share",
        )
        check.that(
            False,
            f"a run that is saved and resumed after each batch differs from an uninterrupted run in "
            f"{', '.join(differing)}; keep all that affects learning in state_dict()",
        )
    for name, tensor in tensors.decode(end).items():
        if name.startswith(NETWORKS):
            check.that(not np.isnan(tensor).any(), f"after a run, {name} in the Learner's state holds NaN")
        elif name.startswith("trainer/"):
            check.that(np.isfinite(tensor).all(), f"after a run, {name} in the Learner's state is not finite")
    return candidate


def _end(check: Checking, settings: Settings, stream: list[list[Sample]], resumes: bool) -> tuple[bytes, Candidate]:
    """Return the saved state at the end of the stream, and the last candidate."""
    retiring = settings.model_copy(update={"labels": small_settings(**RETIRING).labels})
    learner, released, outcome = check.call("building a Learner", lambda: Learner(settings)), None, None
    for number, samples in enumerate(stream):
        if number == HALF or resumes:
            state = _state(check, learner)
            saved = Saved(_loaded(state), learner.parts, _loaded(released) if released else None)
            chosen = settings if number < HALF else retiring
            learner = check.call("resuming a Learner from its saved state", lambda c=chosen, s=saved: Learner(c, s))
            check.that(
                number == HALF or _state(check, learner) == state,
                "state_dict() after load_state_dict() does not return the same state",
            )
        learned = check.call("Learner.learn()", lambda batch=samples, to=learner: to.learn(batch))
        why = learned.refused[0].message if learned.refused else ""
        check.that(not learned.refused, f"a Learner could not learn its batch {number + 1}: {why}")
        outcome = check.call("Learner.decide()", learner.decide)
        if outcome.decision.released:
            released = _state(check, learner)
    assert outcome  # the stream is not empty
    return _state(check, learner), outcome.candidate


def _state(check: Checking, learner: Learner) -> bytes:
    state, document = split(check.call("state_dict()", learner.state_dict))
    return check.call("saving the state", lambda: tensors.encode(as_arrays(state), document))


def _loaded(state: bytes) -> StateDict:
    return join(as_tensors(tensors.decode(state)), tensors.decode_document(state))


def _differing(one: bytes, other: bytes) -> list[str]:
    """Return the names of the parts in which two states differ."""

    def parts(state: bytes) -> set[tuple[str, bytes]]:
        arrays = {(name, array.tobytes()) for name, array in tensors.decode(state).items()}
        return arrays | {(name, msgspec.json.encode(v)) for name, v in tensors.decode_document(state).items()}

    return sorted({name for name, _ in parts(one) ^ parts(other)})
