"""Releases as models of a Triton Inference Server, also for KServe, whose runtime for ONNX is Triton."""

from stream_learner.contract.manifest import encode
from stream_learner.follow.directories.base import MANIFEST, VERSIONS_OF_AN_EPOCH, Linked, Versioned, model_of
from stream_learner.follow.releases import Release
from stream_learner.inference.onnx import INPUT, OUTPUTS
from stream_learner.inference.predictions import BATCH
from stream_learner.text import printable

CONFIG = "config.pbtxt"


class Triton(Versioned):
    """A model of a Triton model repository: `<version>/model.onnx`, and `config.pbtxt`, which names the version to use.

    See https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_repository.html.
    """

    chooser = CONFIG

    def _files(self, release: Release) -> dict[str, bytes]:
        return _version(release, "triton") | {MANIFEST: encode(release.manifest)}

    def _choice(self, version: str, release: Release) -> bytes:
        return _config(self.path.name, version, release)


class KServe(Linked):
    """A Triton model repository for each release, so that each release has a `storageUri` of its own.

    KServe reads the `storageUri` of an InferenceService once, when a pod starts, and Triton gets it as its repository
    (https://kserve.github.io/website/docs/model-serving/predictive-inference/frameworks/onnx).
    """

    def _files(self, release: Release) -> dict[str, bytes]:
        epoch, sequence = release.order
        version = str((epoch - 1) * VERSIONS_OF_AN_EPOCH + sequence)
        model = release.manifest.run_id
        files = {f"{model}/{version}/{name}": content for name, content in _version(release, "kserve").items()}
        return files | {f"{model}/{CONFIG}": _config(model, version, release), MANIFEST: encode(release.manifest)}


def _version(release: Release, layout: str) -> dict[str, bytes]:
    lines = [printable(str(label)) + "\n" for label in release.labels]
    return {"model.onnx": model_of(release, layout), "labels.txt": "".join(lines).encode()}


def _config(model: str, version: str, release: Release) -> bytes:
    """Write a ModelConfig (https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto)."""
    shown = release.described.preprocessing
    outputs = ",\n".join(
        f'  {{ name: "{name}" data_type: TYPE_FP32 dims: [ {len(release.labels)} ] '
        f'label_filename: "{version}/labels.txt" }}'
        for name in OUTPUTS
    )
    return f"""\
name: "{model}"
platform: "onnxruntime_onnx"
max_batch_size: {BATCH}
input [
  {{ name: "{INPUT}" data_type: TYPE_UINT8 dims: [ {shown.height}, {shown.width}, {shown.channels} ] }}
]
output [
{outputs}
]
version_policy {{ specific {{ versions: [ {version} ] }} }}
dynamic_batching {{ }}
""".encode()
