"""Releases as models of MLServer, which has no runtime for ONNX of its own. Therefore a runtime lies beside them."""

from pathlib import Path

from stream_learner import inference
from stream_learner.contract.manifest import encode
from stream_learner.follow.directories.base import MANIFEST, Versioned, model_of
from stream_learner.follow.releases import Release
from stream_learner.inference.onnx import INPUT, OUTPUTS

RUNTIME = "stream_learner_runtime"
SOURCE = Path(inference.__file__).with_name("mlserver_runtime.py")
"""The runtime. Only MLServer imports it."""


class MLServer(Versioned):
    """`<version>/model.onnx`, `model-settings.json`, which names the version to use, and the runtime that loads it.

    See https://docs.seldon.ai/mlserver/user-guide/custom-inference-runtimes.
    """

    chooser = "model-settings.json"

    def _files(self, release: Release) -> dict[str, bytes]:
        return {
            "model.onnx": model_of(release, "mlserver"),
            "labels.json": encode(release.labels),
            MANIFEST: encode(release.manifest),
        }

    def _make_current(self, name: str, release: Release) -> None:
        self._replace(f"{RUNTIME}.py", SOURCE.read_bytes())
        super()._make_current(name, release)

    def _choice(self, version: str, release: Release) -> bytes:
        shown = release.described.preprocessing
        settings = {
            "name": self.path.name,
            "platform": "onnxruntime",
            "implementation": f"{RUNTIME}.Release",
            "inputs": [_tensor(INPUT, "UINT8", [shown.height, shown.width, shown.channels])],
            "outputs": [_tensor(name, "FP32", [len(release.labels)]) for name in OUTPUTS],
            "parameters": {"uri": f"./{version}/model.onnx", "version": version},
        }
        return encode(settings)


def _tensor(name: str, datatype: str, shape: list[int]) -> dict[str, object]:
    return {"name": name, "datatype": datatype, "shape": [-1, *shape]}
