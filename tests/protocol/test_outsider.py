"""A downstream program needs only Kafka, the object store, plain torch and the class that the manifest names."""

import hashlib
from typing import Any

import msgspec
import safetensors.torch
from harness import Run
from outputs import Log

from stream_learner.contract.manifest import ModelSpec
from stream_learner.networks import build


def verified(data: bytes, reference: dict[str, Any]) -> bytes:
    assert (len(data), "sha256:" + hashlib.sha256(data).hexdigest()) == (reference["size"], reference["digest"])
    return data


def test_an_outsider_gets_the_manifests_accuracy(finished: tuple[Run, Log]) -> None:
    _, log = finished
    release = log.manifest["release"]
    weights = safetensors.torch.load(verified(log.release(), release["object"]))
    evaluation = safetensors.torch.load(verified(log.objects[release["evaluation"]["key"]], release["evaluation"]))

    model = build(msgspec.convert(release["model"], ModelSpec)).eval()
    model.load_state_dict(weights)
    predictions = model(evaluation["images"]).argmax(1)
    hits = predictions == evaluation["labels"]

    assert predictions.equal(evaluation["predictions"])
    assert float(hits.double().mean()) == release["test"]["accuracy"] > 0.5
    for score in release["test"]["per_class"]:
        of_class = evaluation["labels"] == release["labels"].index(score["label"])
        assert (int(hits[of_class].sum()), int(of_class.sum())) == (score["correct"], score["total"])
