"""Learn a topic with confluent-kafka and Pillow."""

import numpy as np
import torch
from confluent_kafka import Consumer, KafkaException

from benchmarks.loops.training import Training, arguments, decode, label

options = arguments()
training = Training(options)
consumer = Consumer(
    {"bootstrap.servers": options.bootstrap, "group.id": options.group, "auto.offset.reset": "earliest"}
)
consumer.subscribe([options.topic])
images, labels = [], []
while True:
    for message in consumer.consume(num_messages=options.batch, timeout=1.0):
        if error := message.error():
            raise KafkaException(error)
        images.append(decode(message.value(), options.channels))
        labels.append(label(message.headers()))
    if len(images) >= options.batch:
        training.step(torch.from_numpy(np.stack(images[: options.batch])), torch.tensor(labels[: options.batch]))
        images, labels = images[options.batch :], labels[options.batch :]
