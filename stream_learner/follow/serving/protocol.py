"""Inputs and outputs of the Open Inference Protocol, version 2, for images. https://github.com/kserve/open-inference-protocol

The transports decode the tensors of a request, and these functions check them.
"""

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from stream_learner.contract.predictions import MAX_ID_BYTES
from stream_learner.follow.releases import Release
from stream_learner.program import NAME

IMAGES = "images"
IDS = "ids"
DATATYPES = {"labels": "BYTES", "logits": "FP32", "probabilities": "FP32"}
"""Outputs and their datatypes."""
EXTENSIONS = ["binary_tensor_data"]

ImageShape = tuple[int, int, int]
"""Height, width and channels."""
Images = np.ndarray | list[bytes]
"""uint8 [N, height, width, channels], or N encoded images."""

Outputs = Mapping[str, np.ndarray | list[str]]
"""Outputs by name, N texts or float32 [N, classes]."""


class RequestError(ValueError):
    """A request that cannot be answered. Its message is for the client."""


class Given(NamedTuple):
    """An input tensor of a request: its bytes, or its elements in row-major order."""

    name: str
    datatype: str
    shape: Sequence[int]
    raw: bytes | None
    elements: Sequence[Any] | None


def images(inputs: Sequence[Given], image_shape: ImageShape, max_images: int) -> Images:
    """Return the images of a request. `image_shape` is the network's. Raises RequestError."""
    names = sorted(given.name for given in inputs)
    if names not in ([IMAGES], [IDS, IMAGES]):
        raise RequestError(f"the inputs must be {IMAGES!r} and, if wanted, {IDS!r}, not {names}")
    (given,) = (given for given in inputs if given.name == IMAGES)
    if given.datatype == "UINT8":
        return _pixels(given, image_shape, max_images)
    if given.datatype == "BYTES":
        return _elements(given, _count(given, (), max_images))
    raise RequestError(f"the datatype of {IMAGES} must be UINT8 or BYTES, not {given.datatype!r}")


def ids(inputs: Sequence[Given], images: int, request_id: str | None) -> list[str | None]:
    """Return the id of each image, None without one. One image without the input `ids` has the request's id.

    Raises RequestError.
    """
    given = next((given for given in inputs if given.name == IDS), None)
    if given is None:
        encoded = [(request_id or "").encode()] if images == 1 else [b""] * images
    elif given.datatype != "BYTES" or list(given.shape) != [images]:
        raise RequestError(f"{IDS} must be BYTES [{images}], as many as the images")
    else:
        encoded = _elements(given, images)
    if max(map(len, encoded)) > MAX_ID_BYTES:
        raise RequestError(f"an id is longer than {MAX_ID_BYTES} bytes")
    try:
        return [one.decode() or None for one in encoded]
    except UnicodeDecodeError:
        raise RequestError("an id is not UTF-8") from None


def _count(given: Given, rest: tuple[int, ...], max_images: int) -> int:
    """Return the number of images of a tensor whose further dimensions must be `rest`."""
    count, *others = given.shape or [0]
    if tuple(others) != rest or not 1 <= count <= max_images:
        shown = ", ".join(["N", *map(str, rest)])
        raise RequestError(
            f"the shape of {given.name} as {given.datatype} must be [{shown}] with N from 1 to {max_images}, not "
            f"{list(given.shape)}"
        )
    return count


def _pixels(given: Given, image_shape: ImageShape, max_images: int) -> np.ndarray:
    shape = _count(given, image_shape, max_images), *image_shape
    data = given.elements if given.raw is None else given.raw
    size = math.prod(shape)
    if data is None or len(data) != size:
        raise RequestError(f"{given.name} has {len(data or b'')} values, not {size} as its shape says")
    if isinstance(data, bytes):
        return np.frombuffer(data, np.uint8).reshape(shape)
    if min(data) < 0 or max(data) > 255:
        raise RequestError(f"the values of {given.name} must be from 0 to 255")
    return np.array(data, np.uint8).reshape(shape)


def _elements(given: Given, count: int) -> list[bytes]:
    """Return the elements of a tensor of BYTES."""
    if given.raw is not None:
        return _split(given.name, given.raw, count)
    if given.elements is None or len(given.elements) != count:
        raise RequestError(f"{given.name} has {len(given.elements or [])} elements, not {count} as its shape says")
    return list(given.elements)


def _split(name: str, raw: bytes, count: int) -> list[bytes]:
    """Split elements that each begin with their length, 4 bytes little-endian."""
    elements, place = [], 0
    for _ in range(count):
        start = place + 4
        place = start + int.from_bytes(raw[place:start], "little")
        if place > len(raw):
            raise RequestError(f"{name} has fewer bytes than its {count} elements need")
        elements.append(raw[start:place])
    if place < len(raw):
        raise RequestError(f"{len(raw) - place} bytes follow the {count} elements of {name}")
    return elements


def check_outputs(names: Iterable[str]) -> None:
    """Raise RequestError when a name is not the name of an output."""
    for name in names:
        if name not in DATATYPES:
            raise RequestError(f"there is no output {name!r}; the outputs are {', '.join(DATATYPES)}")


def outputs(release: Release, logits: np.ndarray, probabilities: np.ndarray) -> Outputs:
    """Return all outputs, N texts or float32 [N, classes]."""
    labels = [str(release.labels[index]) for index in probabilities.argmax(1)]
    return {"labels": labels, "logits": logits, "probabilities": probabilities}


def shape(values: np.ndarray | Sequence[str]) -> tuple[int, ...]:
    """Return the shape of an output."""
    return values.shape if isinstance(values, np.ndarray) else (len(values),)


def raw(values: np.ndarray | Sequence[str]) -> bytes:
    """Return the bytes of an output."""
    if isinstance(values, np.ndarray):
        return values.astype("<f4", copy=False).tobytes()
    texts = [value.encode() for value in values]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def version(release: Release) -> str:
    """Return the version of the model, the release's sequence."""
    return str(release.described.sequence)


def metadata(model: str, kept: Iterable[Release], release: Release) -> dict[str, Any]:
    """Return the metadata of a release. -1 stands for any number of images. `kept` are all releases to choose from."""
    classes = len(release.labels)
    return {
        "name": model,
        "versions": [version(one) for one in kept],
        "platform": NAME,
        "inputs": [{"name": IMAGES, "datatype": "UINT8", "shape": [-1, *release.image_shape]}],
        "outputs": [
            {"name": name, "datatype": datatype, "shape": [-1] if name == "labels" else [-1, classes]}
            for name, datatype in DATATYPES.items()
        ],
    }
