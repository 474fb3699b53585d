import json
from contextlib import suppress

import msgspec
import pytest
from edits import edited
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, ValidationError
from msgspec.structs import replace

from stream_learner.contract import documents, ledger
from stream_learner.contract.ledger import Piece
from stream_learner.contract.manifest import (
    Arithmetic,
    Decision,
    Manifest,
    ModelArguments,
    ModelSpec,
    OnnxGraph,
    Preprocessing,
    Release,
    decode_manifest,
    digest,
    encode,
)
from stream_learner.contract.objects import Chunk, Object, Published, State
from stream_learner.contract.spans import Span
from stream_learner.contract.window import (
    ClassForgetting,
    Confusion,
    Distribution,
    Drift,
    Forgetting,
    Recent,
    Window,
    accuracy,
    decode_window,
)

FIRST, SECOND = (f"digits/{sequence:012d}-6f1c1ad0-8f5b-4b0a-9d55-0a4f7c1b2e3d" for sequence in (1, 2))
STATES = [Object(f"{folder}/state.safetensors", 100, digest(b"state")) for folder in (FIRST, SECOND)]
PART = Object("digits/memory/000000000001-6f1c1ad0-8f5b-4b0a-9d55-0a4f7c1b2e3d", 100, digest(b"part"))
ACCURACY = accuracy([("cat", 3, 4), (7, 0, 0), ("é", 0, 2)])
FORGETTING = Forgetting(mean=-0.25, per_class=[ClassForgetting(label=7, best=0.5, forgetting=-0.25)])
RELEASE = Release(
    sequence=1,
    created_at="2025-01-01T00:00:00.000Z",
    object=Object(f"{FIRST}/release.safetensors", 100, digest(b"release")),
    chunks=[Chunk("digits.weights", 0, 12), Chunk("digits.weights", 0, 13)],
    model=ModelSpec("cnn", ModelArguments(classes=3, height=8, width=8, channels=1, mean=[0.5], std=[0.25])),
    labels=["cat", 7, "é"],
    retired=[1],
    preprocessing=Preprocessing(8, 8, 1, [0.5], [0.25]),
    dtype="float32",
    validation=ACCURACY,
    test=accuracy([]),
    calibration_error=0.25,
    forgetting=FORGETTING,
    evaluation=Object(f"{FIRST}/evaluation.safetensors", 100, digest(b"evaluation")),
    canary=Published(Object(f"{FIRST}/canary.safetensors", 100, digest(b"canary")), [Chunk("digits.weights", 0, 14)]),
    onnx=OnnxGraph(
        published=Published(Object(f"{FIRST}/graph.onnx", 100, digest(b"graph")), [Chunk("digits.weights", 0, 15)]),
        unused=["body.1.num_batches_tracked"],
        compared=2,
    ),
    missing_formats={"onnx": "a reason"},
    manifest=Object(f"{FIRST}/manifest.json", 100, digest(b"manifest")),
)
DECISION = Decision(
    released=False,
    abstained=False,
    candidate=0.5,
    last=0.9,
    samples=200,
    reason="worse",
    both_right=90,
    only_last_right=90,
    only_candidate_right=10,
    p_value=0.001,
    negative_flip_rate=0.45,
    old_class_drop=-0.25,
)
SPANS = {"images": {0: Span(4, 10), 11: Span(0, 2**40)}}
WHOLE = Manifest(
    program="stream-learner 0.1.0",
    run_id="digits",
    epoch=1,
    sequence=2,
    predecessor=digest(b"before"),
    created_at="2025-01-01T00:01:00.000Z",
    positions={"images": {0: 10, 11: 2**40}},
    spans=SPANS,
    lost={"images": {0: [Span(4, 6)]}},
    ledger=ledger.encode([[Piece("images", 0, 10)], [Piece("images", 11, 2**40)]], SPANS),
    arithmetic=Arithmetic("2.5.0", "cpu", "AVX2", 2, digest(b"settings")),
    store="file:///objects",
    topic_ids={"images": "a", "digits.checkpoints": "b"},
    state=STATES[1],
    kept=[State(1, STATES[0]), State(2, STATES[1], [0])],
    parts=[PART],
    released=False,
    decision=DECISION,
    release=RELEASE,
    weights={"record": Distribution(12, 0.75, 0.0, 1.5)},
)
SECOND_RELEASE = replace(
    RELEASE,
    sequence=2,
    object=Object(f"{SECOND}/release.safetensors", 100, digest(b"release")),
    evaluation=Object(f"{SECOND}/evaluation.safetensors", 100, digest(b"evaluation")),
    canary=Published(Object(f"{SECOND}/canary.safetensors", 100, digest(b"canary")), []),
    onnx=None,
    manifest=None,
)
NEXT_RELEASE = replace(
    WHOLE,
    released=True,
    decision=replace(DECISION, released=True),
    release=SECOND_RELEASE,
    earlier=[RELEASE.as_earlier()],
)
FIRST_SAVE = replace(
    WHOLE,
    sequence=1,
    predecessor=None,
    state=STATES[0],
    kept=[State(1, STATES[0])],
    parts=[],
    decision=None,
    release=None,
)
WINDOW = Window(
    run_id="digits",
    epoch=1,
    sequence=2,
    created_at="2025-01-01T00:01:00.000Z",
    spans=WHOLE.spans,
    records=17,
    splits={"train": 12, "test": 2},
    rejected={"no_label": 2},
    rejected_by_topic={"images": {"no_label": 2}},
    tombstones=1,
    timestamps={"future": 0, "unknown": 1},
    learned=12,
    steps=3,
    loss=0.25,
    weights={"record": Distribution(12, 0.75, 0.0, 1.5)},
    prequential=ACCURACY,
    validation=ACCURACY,
    test=None,
    calibration_error=0.25,
    forgetting=FORGETTING,
    recent=Recent(
        accuracy=ACCURACY,
        faded_accuracy=0.5,
        kappa=0.25,
        calibration_error=0.125,
        confusions=[Confusion("cat", 7, 2)],
    ),
    drift_count=1,
    drifts=[Drift(records=64, spans=SPANS, error_before=0.125, error_after=0.5)],
    lag={"images": {0: 3}},
)
BARE_WINDOW = Window(
    run_id="digits",
    epoch=1,
    sequence=1,
    created_at="2025-01-01T00:00:00.000Z",
    spans={},
    records=0,
    splits={},
    rejected={},
    rejected_by_topic={},
    tombstones=0,
    drift_count=0,
    timestamps={},
    learned=0,
    steps=0,
    loss=None,
    prequential=accuracy([]),
    validation=None,
    test=None,
    lag={},
)


@pytest.mark.parametrize("manifest", [WHOLE, NEXT_RELEASE, FIRST_SAVE])
def test_a_manifest_comes_back_as_it_was(manifest):
    assert decode_manifest(encode(manifest)) == manifest
    assert encode(decode_manifest(encode(manifest))) == encode(manifest)


@pytest.mark.parametrize("document", [WHOLE, NEXT_RELEASE, FIRST_SAVE, WINDOW, BARE_WINDOW])
def test_what_is_published_is_valid_by_its_own_schema(document):
    schema = msgspec.json.schema(type(document))
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    published = json.loads(encode(document))
    validator.validate(published)
    for broken in ({**published, "spans": {"images": {"0": [1]}}}, {**published, "sequence": "2"}):
        with pytest.raises(ValidationError):
            validator.validate(broken)
    del published["run_id"]
    with pytest.raises(ValidationError):
        validator.validate(published)


def test_a_window_comes_back_as_it_was():
    assert decode_window(encode(WINDOW)) == WINDOW


def test_partitions_and_spans_have_their_plainest_json():
    published = json.loads(encode(WHOLE))
    assert published["spans"]["images"]["0"] == [4, 10]
    assert published["release"]["labels"] == ["cat", 7, "é"]
    assert published["release"]["chunks"][0] == {"topic": "digits.weights", "partition": 0, "offset": 12}


def test_another_schema_version_is_refused_even_if_it_looks_alike():
    for version in (1, 2, 3, 4, 5, 7):
        with pytest.raises(ValueError, match=f"manifest schema version {version}; this program reads 6"):
            decode_manifest(encode(replace(WHOLE, schema_version=version)))
    with pytest.raises(ValueError, match="manifest schema version 9"):
        decode_manifest(b'{"schema_version": 9, "everything": "else"}')


@given(st.one_of(st.binary(), st.integers(0, len(encode(WHOLE)) - 1).map(lambda end: encode(WHOLE)[:end])))
def test_what_is_no_manifest_is_refused(data):
    with pytest.raises(ValueError, match=r"."):
        decode_manifest(data)


@pytest.mark.parametrize(
    ("field", "key"),
    [
        ("parts", "digits/../victim"),
        ("parts", "another/memory/000000000001-6f1c1ad0-8f5b-4b0a-9d55-0a4f7c1b2e3d"),
        ("parts", "digits/memory/000000000001-6f1c1ad0-8f5b-4b0a-9d55-0a4f7c1b2e3d/more"),
        ("parts", "digits/memory/000000000001-6f1c1ad0-8f5b-4b0a-9d55-0a4f7c1b2e3d\n"),
        ("parts", f"{SECOND}/state.safetensors"),
        ("parts", "digits/run.json"),
        ("state", f"{FIRST}/state.safetensors"),
        ("state", f"{SECOND}/release.safetensors"),
        ("state", "digits/000000000002-..-4b0a-9d55-0a4f7c1b2e3d/state.safetensors"),
        ("state", f"/{SECOND}/state.safetensors"),
        ("state", "file:///etc/passwd"),
        ("kept", f"{SECOND.replace('digits', '..')}/state.safetensors"),
        ("kept", f"{SECOND}/../state.safetensors"),
        ("release", f"{SECOND}/release.safetensors"),
        ("evaluation", f"{FIRST}/release.safetensors"),
        ("canary", f"{FIRST}/evaluation.safetensors"),
        ("onnx", f"{FIRST}/canary.safetensors"),
        ("manifest", f"{SECOND}/manifest.json"),
    ],
)
def test_a_key_that_the_program_would_not_have_written_is_refused(field, key):
    document = json.loads(encode(WHOLE))
    places = {
        "parts": document["parts"][0],
        "state": document["state"],
        "kept": document["kept"][0]["object"],
        "release": document["release"]["object"],
        "evaluation": document["release"]["evaluation"],
        "canary": document["release"]["canary"]["object"],
        "onnx": document["release"]["onnx"]["published"]["object"],
        "manifest": document["release"]["manifest"],
    }
    places[field]["key"] = key
    with pytest.raises(ValueError, match=r"key|matching regex"):
        decode_manifest(json.dumps(document).encode())


@pytest.mark.parametrize(
    ("field", "key"),
    [
        ("object", f"{SECOND}/release.safetensors"),
        ("object", f"{FIRST}/state.safetensors"),
        ("object", f"{FIRST.replace('digits', '..')}/release.safetensors"),
        ("evaluation", f"{FIRST}/release.safetensors"),
        ("evaluation", f"{FIRST.replace('digits', 'another')}/evaluation.safetensors"),
        ("canary", f"{FIRST}/canary.safetensors/more"),
        ("onnx", f"{FIRST}/release.safetensors"),
        ("manifest", f"{FIRST}/release.safetensors"),
    ],
)
def test_a_key_of_an_earlier_release_is_checked_too(field, key):
    document = json.loads(encode(NEXT_RELEASE))
    document["earlier"][0][field]["key"] = key
    with pytest.raises(ValueError, match=r"key|matching regex"):
        decode_manifest(json.dumps(document).encode())


def test_a_manifest_names_all_objects_of_its_states_and_releases():
    named = [found.key for found in NEXT_RELEASE.objects()]
    assert len({*named}) == len(named) == 2 + 1 + 5 + 3
    assert {key.rpartition("/")[0] for key in named} == {FIRST, SECOND, "digits/memory"}
    assert len(FIRST_SAVE.objects()) == 1


@given(edited(json.loads(encode(NEXT_RELEASE))))
def test_whatever_a_manifest_says_it_is_one_or_refused(document):
    with suppress(ValueError):
        decode_manifest(json.dumps(document).encode())


@given(edited(json.loads(encode(WINDOW))))
def test_whatever_a_window_says_it_is_one_or_refused(document):
    with suppress(ValueError):
        decode_window(json.dumps(document).encode())


@pytest.mark.parametrize("decode", [decode_manifest, decode_window])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b" " * (documents.MAX_BYTES + 1), "4194305 bytes long; at most 4194304 are read"),
        (b'{"schema_version": 5, "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b"[" * 1_000_000, "nested too deeply|Expected `object`"),
        (b'{"run_id": "\xff"}', "utf-8|missing required field"),
        (b"", "truncated"),
    ],
)
def test_documents_are_bounded_before_they_are_parsed(decode, data, message):
    with pytest.raises(ValueError, match=message):
        decode(data)


CONTRADICTIONS = {
    "only the manifest with sequence 1": {"predecessor": None},
    "sequence 1 has no predecessor": {"sequence": 1, "state": STATES[0], "kept": [State(1, STATES[0])]},
    "kept` is not in order of sequence": {"kept": [State(2, STATES[1]), State(1, STATES[0])]},
    "or does not end with `state`": {"kept": [State(1, STATES[0])]},
    "parts that are not in `parts`": {"parts": []},
    r"position of images\[0\] is not where": {"positions": {"images": {0: 9, 11: 2**40}}},
    "a span ends before it starts": {"discarded": {"images": {0: Span(4, 3)}}},
    r"lost offsets of images\[0\] are not in its span": {"lost": {"images": {0: [Span(3, 5)]}}},
    "a partition has rows, but no position": {"rows": {"images": {7: 1}}},
    "release does not match its decision": {"released": True},
    "went back to another release": {"rolled_back_to": 2},
    "the state of the last release is not kept": {"kept": [State(2, STATES[1], [0])]},
    "`retired` is not a sorted list": {"release": replace(RELEASE, retired=[3])},
    "labels do not fit": {"release": replace(RELEASE, labels=["cat", 7, 7])},
    "the model's classes": {"release": replace(RELEASE, labels=["cat", 7])},
    "`preprocessing` does not fit": {"release": replace(RELEASE, preprocessing=Preprocessing(8, 9, 1, [0.5], [0.25]))},
    "is not a time in UTC": {"created_at": "2025-01-01T00:01:00"},
    "'yesterday' is not a time in UTC": {"release": replace(RELEASE, created_at="yesterday")},
    "matching regex": {"predecessor": "sha256:0"},
    "Expected `int` >= 0": {"positions": {"images": {0: -1}}},
    "Expected `int` <= 9223372036854775807": {"positions": {"images": {0: 2**63}}},
    "Expected `int` >= 1": {"sequence": 0},
    "Expected `int` <= 2147483647": {"epoch": 2**63},
    "Expected `array` of length >= 1": {"kept": []},
    "Expected `int` <= 4096": {
        "release": replace(RELEASE, model=ModelSpec("cnn", replace(RELEASE.model.arguments, height=2**40)))
    },
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"earlier": 2 * NEXT_RELEASE.earlier}, "`earlier` is not in order of sequence"),
        ({"release": None, "released": False}, "does not end before the last release"),
        ({"earlier": [replace(RELEASE.as_earlier(), created_at="yesterday")]}, "'yesterday' is not a time in UTC"),
        ({"earlier": [SECOND_RELEASE.as_earlier()]}, "does not end before the last release"),
    ],
)
def test_earlier_releases_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=f"not a manifest: .*{message}"):
        decode_manifest(encode(replace(NEXT_RELEASE, **changes)))


@pytest.mark.parametrize("message", CONTRADICTIONS)
def test_a_manifest_that_cannot_be_is_refused_with_what_is_wrong(message):
    with pytest.raises(ValueError, match=f"not a manifest: .*{message}"):
        decode_manifest(encode(replace(WHOLE, **CONTRADICTIONS[message])))


@pytest.mark.parametrize("changes", [{"positions": {"images\n": {0: 9}}}, {"run_id": "digits\n"}])
def test_a_name_that_ends_in_a_newline_is_refused(changes):
    with pytest.raises(ValueError, match="matching regex"):
        decode_manifest(encode(replace(WHOLE, **changes)))


@pytest.mark.parametrize("run_id", [".", ".."])
def test_a_run_whose_folder_would_be_outside_of_the_store_is_refused(run_id):
    """Although all of its keys are under it."""
    named = encode(WHOLE).replace(b'"digits"', f'"{run_id}"'.encode()).replace(b'"digits/', f'"{run_id}/'.encode())
    with pytest.raises(ValueError, match="the run's folder would be outside of the store"):
        decode_manifest(named)


def test_a_window_of_another_schema_version_is_refused():
    with pytest.raises(ValueError, match="window schema version 2; this program reads 3"):
        decode_window(encode(replace(WINDOW, schema_version=2)))


def test_an_objects_url_is_that_of_the_store_when_it_was_written():
    assert WHOLE.url(WHOLE.state) == f"file:///objects/{SECOND}/state.safetensors"


def test_fields_a_newer_program_added_are_passed_over():
    newer = json.loads(encode(WHOLE)) | {"added": 1}
    assert decode_manifest(json.dumps(newer).encode()) == WHOLE


def test_a_manifest_before_releases_named_their_manifests_is_read():
    document = json.loads(encode(NEXT_RELEASE))
    for release in (document["release"], *document["earlier"]):
        del release["manifest"]
    older = decode_manifest(json.dumps(document).encode())
    assert older == replace(NEXT_RELEASE, earlier=[replace(RELEASE, manifest=None).as_earlier()])


def test_accuracy_leaves_out_classes_without_samples():
    assert ACCURACY.accuracy == 3 / 6
    assert ACCURACY.mean_recall == (3 / 4 + 0) / 2
    assert [c.label for c in ACCURACY.per_class] == ["cat", "é"]


def test_digests_are_sha256():
    assert digest(b"") == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert digest(memoryview(b"x")) == digest(b"x")


def test_predictions_are_no_input():
    topics = {"cats": {0: 5}, "digits.predictions": {0: 7}}
    evaluating = replace(WHOLE, positions=topics, topic_ids={"cats": "1", "digits.checkpoints": "2"})
    assert evaluating.learned_positions == {"cats": {0: 5}}
    another = replace(evaluating, topic_ids={"cats": "1", "other.checkpoints": "2"})
    assert another.learned_positions == topics
