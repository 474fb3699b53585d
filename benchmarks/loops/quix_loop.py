"""Learn a topic with Quix Streams and Pillow. It runs in an environment of its own, see `quix.in`."""

from typing import Any

import numpy as np
import torch
from quixstreams import Application  # pyright: ignore[reportMissingImports]

from benchmarks.loops.training import Training, arguments, decode, label

options = arguments()
training = Training(options)
images, labels = [], []


def learn(value: bytes, key: Any, timestamp: int, headers: list[tuple[str, bytes]]) -> None:
    del key, timestamp
    images.append(decode(value, options.channels))
    labels.append(label(headers))
    if len(images) == options.batch:
        training.step(torch.from_numpy(np.stack(images)), torch.tensor(labels))
        images.clear()
        labels.clear()


app = Application(broker_address=options.bootstrap, consumer_group=options.group, auto_offset_reset="earliest")
topic = app.topic(options.topic, key_deserializer="bytes", value_deserializer="bytes")
app.dataframe(topic).update(learn, metadata=True)
app.run()
