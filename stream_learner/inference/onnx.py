"""Compute a network with ONNX Runtime, from an ONNX graph without parameters and the parameters of a release."""

from collections.abc import Collection
from types import ModuleType
from typing import Any

import numpy as np

from stream_learner.contract.tensors import Arrays
from stream_learner.errors import UsageError

INPUT = "images"
OUTPUTS = ["logits", "probabilities"]
PREFIX = "network."
"""Initializer `network.NAME` of a graph is the tensor NAME of a release. Without the prefix, a tensor such as `mean`
could have the same name as a node."""
EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
ERRORS_ONLY = 3


class OnnxModel:
    """A network that ONNX Runtime computes, on one CPU thread by default. Several threads may call the network."""

    def __init__(self, graph: bytes, parameters: Arrays, unused: Collection[str] = (), threads: int = 1):
        """Put a graph and the parameters of a release together. `unused` names parameters that the graph does not have.

        Raises UsageError when ONNX Runtime is not installed, ValueError when graph and parameters do not fit.
        """
        runtime = _runtime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = ERRORS_ONLY
        # A graph from outside must not read files of this machine as its parameters.
        options.add_session_config_entry(EXTERNAL_FOLDER, "/nonexistent")
        names = [name for name in parameters if name not in {*unused}]
        values = [runtime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(parameters[name])) for name in names]
        try:
            options.add_external_initializers([PREFIX + name for name in names], values)
            self._session = runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
            taken, given = self._session.get_inputs(), self._session.get_outputs()
        except Exception as error:  # noqa: BLE001 (the errors of ONNX Runtime have no other common class)
            raise ValueError(f"ONNX Runtime cannot load the graph: {error}") from None
        if [one.name for one in taken] != [INPUT] or [one.name for one in given] != OUTPUTS:
            raise ValueError(f"the graph does not map {INPUT} to {' and '.join(OUTPUTS)}")
        self._values = values  # keep the memory, which ONNX Runtime reads as long as the session exists

    def __call__(self, images_NHWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return logits and probabilities, float32 [N, classes], of uint8 images [N, H, W, C].

        Raises ValueError when ONNX Runtime cannot compute the graph for these images.
        """
        try:
            logits, probabilities = self._session.run(OUTPUTS, {INPUT: images_NHWC})
        except Exception as error:  # noqa: BLE001
            raise ValueError(f"ONNX Runtime cannot compute the graph: {error}") from None
        return logits, probabilities


def _runtime() -> ModuleType | Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise UsageError(f'ONNX Runtime cannot be imported ({error}): pip install "stream-learner[follow]"') from None
    return onnxruntime
