"""A Triton backend `onnxruntime`, in Python. The Triton that can be installed here has no other than `python`.

Triton itself reads the configuration, chooses the version, checks requests and batches. This backend only computes.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        return config

    def initialize(self, arguments):
        config = json.loads(arguments["model_config"])
        self._outputs = [output["name"] for output in config["output"]]
        (self._input,) = [given["name"] for given in config["input"]]
        folder = Path(arguments["model_repository"], arguments["model_version"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(folder / "model.onnx", options)

    def execute(self, requests):
        given = [triton.get_input_tensor_by_name(request, self._input).as_numpy() for request in requests]
        computed = self._session.run(self._outputs, {self._input: np.concatenate(given)})
        responses, start = [], 0
        for request, images in zip(requests, given, strict=True):
            part = slice(start, start + len(images))
            start = part.stop
            asked = request.requested_output_names()
            tensors = [
                triton.Tensor(name, values[part])
                for name, values in zip(self._outputs, computed, strict=True)
                if name in asked
            ]
            responses.append(triton.InferenceResponse(tensors))
        return responses
