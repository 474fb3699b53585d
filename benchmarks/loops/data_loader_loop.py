"""Learn a topic with PyTorch's DataLoader, whose worker process reads with confluent-kafka and decodes with Pillow."""

import argparse
from collections.abc import Iterator

import torch
from confluent_kafka import Consumer, KafkaException
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.loops.training import Training, arguments, decode, label


class Topic(IterableDataset):
    def __init__(self, options: argparse.Namespace):
        self.options = options

    def __iter__(self) -> Iterator[tuple[torch.Tensor, int]]:
        options = self.options
        consumer = Consumer(
            {"bootstrap.servers": options.bootstrap, "group.id": options.group, "auto.offset.reset": "earliest"}
        )
        consumer.subscribe([options.topic])
        while True:
            for message in consumer.consume(num_messages=500, timeout=1.0):
                if error := message.error():
                    raise KafkaException(error)
                yield torch.tensor(decode(message.value(), options.channels)), label(message.headers())


if __name__ == "__main__":
    options = arguments()
    training = Training(options)
    for images, labels in DataLoader(Topic(options), batch_size=options.batch, num_workers=1):
        training.step(images, labels)
