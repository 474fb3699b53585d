"""Serve a release of stream-learner with MLServer. Needs mlserver and onnxruntime, nothing of stream-learner."""

import numpy as np
import onnxruntime
from mlserver import MLModel  # pyright: ignore[reportMissingImports]
from mlserver.codecs import NumpyCodec  # pyright: ignore[reportMissingImports]
from mlserver.errors import InferenceError  # pyright: ignore[reportMissingImports]
from mlserver.types import InferenceRequest, InferenceResponse  # pyright: ignore[reportMissingImports]
from mlserver.utils import get_model_uri  # pyright: ignore[reportMissingImports]


class Release(MLModel):
    """A model that ONNX Runtime computes on one thread. MLServer runs several processes."""

    async def load(self) -> bool:
        """Load the version that `model-settings.json` names."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        model = await get_model_uri(self._settings)
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Compute logits and probabilities of images, UINT8 [N, H, W, C]."""
        (taken,) = self._session.get_inputs()
        given = [output.name for output in self._session.get_outputs()]
        if [tensor.name for tensor in payload.inputs] != [taken.name]:
            raise InferenceError(f"the model takes one input, {taken.name}")
        tensor = payload.inputs[0]
        if tensor.datatype != "UINT8" or tensor.shape[1:] != taken.shape[1:]:
            raise InferenceError(f"{taken.name} must be UINT8 of the shape {[-1, *taken.shape[1:]]}")
        try:
            images_NHWC = np.asarray(NumpyCodec.decode_input(tensor), np.uint8)
        except (ValueError, OverflowError) as error:
            raise InferenceError(f"{taken.name} cannot be decoded: {error}") from None
        values = self._session.run(given, {taken.name: images_NHWC})
        return InferenceResponse(
            model_name=self.name,
            model_version=self.version,
            outputs=[NumpyCodec.encode_output(name, value) for name, value in zip(given, values, strict=True)],
        )
