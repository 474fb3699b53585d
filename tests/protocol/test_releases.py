"""The newest release, read with the public API: from the topic, from the store, checked, and as the pages show it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confluent_kafka import Producer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from feed import client, digits, mixed
from harness import NewRun, Run
from outputs import Log, Read

from stream_learner import NoReleaseError, Release, StateError, StoreError, TopicsError, UsageError, read_release
from stream_learner.contract import tensors
from stream_learner.follow import reading

ROOT = Path(__file__).parent.parent.parent


def newest(run: Run, **options: Any) -> Release:
    return read_release(run.id, run.broker.bootstrap_servers, **options)


def published(run: Run) -> Log:
    run.feed(mixed(300))
    return run.finish(run.start())


def forge(run: Run, genuine: Read, epoch: int, **changes: Any) -> None:
    """Write a manifest of a later epoch, whose release has `changes`, with the genuine signature."""
    manifest = json.loads(genuine.value or b"")
    release = {**manifest["release"], **changes}
    forged = {**manifest, "epoch": epoch, "release": release}
    producer = Producer(client(run.broker.bootstrap_servers))
    value = json.dumps(forged).encode()
    producer.produce(f"{run.prefix}.checkpoints", value, run.id, headers=[*genuine.headers])
    producer.flush()


def test_a_release_predicts_what_its_manifest_says(finished: tuple[Run, Log]) -> None:
    run, log = finished
    release = newest(run)
    assert release.data == log.release()
    assert release.labels == log.manifest["release"]["labels"]
    assert release.arrays().keys() == release.network().state_dict().keys()
    evaluation = tensors.decode(log.objects[log.manifest["release"]["evaluation"]["key"]])
    predicted = release.predict(evaluation["images"])
    assert predicted.labels == [release.labels[index] for index in evaluation["predictions"]]
    assert predicted.probabilities.shape == (len(evaluation["images"]), len(release.labels))
    assert np.allclose(predicted.probabilities.sum(1), 1)


def test_encoded_images_and_pixels_of_any_size_are_predicted(finished: tuple[Run, Log]) -> None:
    release = newest(finished[0])
    encoded, label = digits()[3]
    (pixels_HWC,) = [np.full((30, 20, 3), 255, np.uint8)]
    predicted = release.predict([encoded, pixels_HWC])
    assert predicted.labels[0] == label.decode()
    assert release.predict([]).labels == []
    with pytest.raises(ValueError, match=r"float64 \[8, 8\]"):
        release.predict([np.zeros((8, 8))])


def test_before_the_first_release_there_is_none(new_run: NewRun) -> None:
    run = new_run()
    with pytest.raises(NoReleaseError, match="has not released a model yet"):
        newest(run)
    run.feed(mixed(50))
    run.finish(run.start())  # it saves, and releases nothing
    assert run.read("checkpoints")
    with pytest.raises(NoReleaseError, match="has not released a model yet"):
        newest(run)
    with pytest.raises(TopicsError, match=r"no topic elsewhere.checkpoints; check the run id and the prefix"):
        newest(run, prefix="elsewhere")
    with pytest.raises(UsageError, match=r"run.id: must be 1 to 200 letters"):
        read_release("a/b")


def test_a_large_release_is_read_from_the_store(new_run: NewRun) -> None:
    run = new_run(release__every_records=200, release__inline_max_bytes=0)
    run.feed(mixed(300))
    worker = run.start()
    run.learned(worker)
    worker.stop()
    log = run.published()
    with pytest.raises(StateError, match=r"does not hold release .* pass the worker's checkpoint.store as `store`"):
        newest(run)
    assert newest(run, store=str(run.store)).labels == log.manifest["release"]["labels"]
    with pytest.raises(StoreError, match=r"elsewhere is missing; .* checkpoint.store was file:"):
        newest(run, store=str(run.folder / "elsewhere"))
    written = run.store / log.manifest["release"]["object"]["key"]
    written.write_bytes(bytes(written.stat().st_size))
    with pytest.raises(StateError, match="is not the one a manifest names"):
        newest(run, store=str(run.store))


def test_forged_releases_are_refused(new_run: NewRun, tmp_path: Path) -> None:
    key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    private, public, others = (tmp_path / f"{name}.pem" for name in ("private", "public", "others"))
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    for path, owner in ((public, key), (others, other)):
        path.write_bytes(owner.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    keys = {"security__signing_key_file": str(private), "security__verify_key_files": [str(public)]}
    run = new_run(release__every_records=200, **keys)
    log = published(run)
    genuine, described = log.checkpoints[-1], log.manifest["release"]

    forge(run, genuine, 2, object=described["object"] | {"digest": "sha256:" + "0" * 64})
    with pytest.raises(StateError, match="holds other bytes than the manifest names"):
        newest(run)
    forge(run, genuine, 3, chunks=[{**described["chunks"][0], "topic": run.input}])
    with pytest.raises(StateError, match="does not hold release"):
        newest(run)
    forge(run, genuine, 4, model=described["model"] | {"name": "os:system"})
    with pytest.raises(StateError, match=r"'os:system' is not part of this program"):
        newest(run).network()
    own = "stream_learner.networks.small:MLP"  # as a network of the reader's own
    forge(run, genuine, 5, model=described["model"] | {"name": own})
    with pytest.raises(StateError, match="if it is your own, pass its name"):
        newest(run).predict([digits()[0][0]])
    assert newest(run, own=own).predict([digits()[0][0]]).labels[0] in described["labels"]
    forge(run, genuine, 6, model=described["model"] | {"name": "rnn"})
    with pytest.raises(StateError, match="does not fit its network"):
        newest(run).network()

    signed = newest(run, verify_key_files=[public])
    assert signed.manifest.epoch == 1
    assert signed.data == log.release()
    with pytest.raises(StateError, match="it is not signed by one of"):
        newest(run, verify_key_files=[others])


def test_a_release_whose_bytes_are_gone_gives_way_to_the_next(new_run: NewRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new_run(release__every_records=200)
    published(run)
    settings = reading.reader_settings(run.id, run.broker.bootstrap_servers, None, ())
    before = reading._choose(settings)
    run.empty("weights")
    with pytest.raises(StateError, match="does not hold release"):
        newest(run)
    published(run)
    answers = [before]  # what a reader knows that was slow
    read = reading._choose
    monkeypatch.setattr(reading, "_choose", lambda settings: answers.pop() if answers else read(settings))
    assert newest(run).described.sequence > before[1].sequence


def test_the_pages_show_what_works(
    new_run: NewRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = new_run(release__every_records=200)
    published(run)
    (run.folder / "image.png").write_bytes(digits()[3][0])
    monkeypatch.chdir(run.folder)
    shown = []
    for page in ("README.md", "docs/api.md"):
        for block in (ROOT / page).read_text().split("```python\n")[1:]:
            code = block.split("```")[0].replace("127.0.0.1:9092", run.broker.bootstrap_servers)
            exec(code.replace('"inspection"', repr(run.id)), {})
            shown.append(capsys.readouterr().out.split())
    assert shown[0][0] in "0123456789"
    assert 0 < float(shown[0][1]) <= 1
    assert 0 < float(shown[2][-1]) <= 1
    assert shown[4:] == [[]]  # a check that passes says nothing
    assert {*"".join(shown[3]).strip("[]").replace("'", "").split(",")} <= {"dark", "light"}
