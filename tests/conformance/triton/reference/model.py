"""A Triton backend that answers as the server of this project should: labels, logits and probabilities.

Its model has an input of UINT8 (pixels) or of BYTES (encoded images of the network's size). The server checks requests,
this backend only computes.
"""

import io
import json
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton
from PIL import Image


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        return config

    def initialize(self, arguments):
        folder = Path(arguments["model_repository"], arguments["model_version"])
        self._labels = (folder / "labels.txt").read_text().splitlines()
        self._session = onnxruntime.InferenceSession(folder / "model.onnx")
        (given,) = json.loads(arguments["model_config"])["input"]
        self._encoded = given["data_type"] == "TYPE_STRING"

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        images = triton.get_input_tensor_by_name(request, "images").as_numpy()
        if self._encoded:
            images = np.stack([np.asarray(Image.open(io.BytesIO(image)))[:, :, None] for image in images])
        logits, probabilities = self._session.run(["logits", "probabilities"], {"images": images})
        labels = np.array([self._labels[index] for index in logits.argmax(1)], object)
        outputs = {"labels": labels, "logits": logits, "probabilities": probabilities}
        asked = request.requested_output_names()
        return triton.InferenceResponse([triton.Tensor(name, outputs[name]) for name in outputs if name in asked])
