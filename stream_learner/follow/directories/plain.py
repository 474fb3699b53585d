"""Releases as files for programs of your own."""

from stream_learner.contract.manifest import encode
from stream_learner.follow.directories.base import MANIFEST, Linked, model_of
from stream_learner.follow.releases import Release


class Plain(Linked):
    """The objects of each release, and `model.onnx`, which needs no other file."""

    def _files(self, release: Release) -> dict[str, bytes]:
        files = {
            "release.safetensors": release.data,
            MANIFEST: encode(release.manifest),
            "labels.json": encode(release.labels),
            "preprocessing.json": encode(release.described.preprocessing),
        }
        if release.graph is not None:
            files |= {"graph.onnx": release.graph, "model.onnx": model_of(release, "plain")}
        return files
