"""Learn a topic with kafka-python and Pillow."""

import numpy as np
import torch
from kafka import KafkaConsumer

from benchmarks.loops.training import Training, arguments, decode, label

options = arguments()
training = Training(options)
consumer = KafkaConsumer(
    options.topic,
    bootstrap_servers=options.bootstrap,
    group_id=options.group,
    auto_offset_reset="earliest",
)
images, labels = [], []
for record in consumer:
    images.append(decode(record.value, options.channels))
    labels.append(label(record.headers))
    if len(images) == options.batch:
        training.step(torch.from_numpy(np.stack(images)), torch.tensor(labels))
        images, labels = [], []
