"""Good and bad input records, each with its expected result."""

import io
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from typing import Any, NamedTuple

import nasty_images
import numpy as np
import raw_batches
from confluent_kafka import KafkaError, Message, Producer
from PIL import Image
from sklearn.datasets import load_digits

from stream_learner.config import KafkaSettings

Headers = list[tuple[str, Any]]  # names and values: bytes, or None for null
Images = list[tuple[bytes, bytes]]  # encoded image, label

MAX_RECORD_BYTES = 20_000
MAX_IMAGE_PIXELS = 10_000
LOST = "lost"
UNREADABLE = "unreadable_record"
TOMBSTONE = "tombstone"
MAX_CLASSES = 10
BAD_EVERY = 40


class Draft(NamedTuple):
    """A record to feed.

    `fate` is a split, a reason to reject, a deletion marker, or None: used, in a split that a hash decides. A message
    that holds many records has these as `rows`.
    """

    key: bytes | None
    value: bytes | None
    headers: Headers
    fate: str | None
    rows: "tuple[Draft, ...]" = ()


class Fed(NamedTuple):
    """A record as it stands in the input. `row` is its index in a message that holds many records."""

    topic: str
    partition: int
    offset: int
    draft: Draft
    row: int | None = None


def png(pixels_HW: np.ndarray) -> bytes:
    """A grey image of uint8 pixels."""
    data = io.BytesIO()
    Image.fromarray(pixels_HW).save(data, "png")
    return data.getvalue()


@cache
def digits() -> Images:
    """Return 1,797 handwritten digits of 8 x 8 pixels as (PNG, label). The first ten have all ten labels."""
    images, labels = load_digits(return_X_y=True)
    return [
        (png((image.reshape(8, 8) * 15).astype(np.uint8)), str(label).encode())
        for image, label in zip(images, labels, strict=True)
    ]


@cache
def gif() -> bytes:
    """An image of a kind that is not taken. Its palette takes a while to find."""
    return nasty_images.encoded("GIF")


def bad(image: bytes, label: bytes) -> list[Draft]:
    """A record for every reason to reject one, each with a single flaw, and deletion markers."""
    labelled = [("label", label)]

    def draft(fate: str, value: bytes | None, headers: Headers, key: bytes | None = b"key") -> Draft:
        return Draft(key, value, headers, fate)

    return [
        draft(TOMBSTONE, None, []),
        draft(TOMBSTONE, None, labelled, key=b""),
        draft("no_image", None, labelled, key=None),
        draft("no_image", b"", labelled),
        draft("undecodable_image", b"\xff\xd8 not a JPEG", labelled),
        draft("undecodable_image", image[: len(image) // 2], labelled, key=None),
        draft("undecodable_image", nasty_images.flipped(image, 8 * image.index(b"IDAT") + 50), labelled),
        draft("undecodable_image", gif(), labelled),
        draft("undecodable_image", nasty_images.png_that_claims(0, 0, b""), labelled),
        draft("oversized_image", nasty_images.png_that_claims(1, 50_000_000, bytes(100)), labelled),
        draft("oversized_image", nasty_images.jpeg_that_claims(65_000, 65_000), labelled),
        draft("oversized_image", nasty_images.jpeg_of_scans(50), labelled),
        draft("oversized_image", png(np.zeros((101, 100), np.uint8)), labelled),
        draft("oversized_image", image + bytes(MAX_RECORD_BYTES), labelled),
        draft("no_label", image, []),
        draft("no_label", image, [("label", b"")]),
        draft("no_label", image, [("label", None), ("id", b""), ("id", None), ("id", b"null")], key=b""),
        draft("no_image", None, [("label", None)], key=None),
        # As if it were from the dead letters, or in our name.
        draft("no_label", image, [("__connect.errors.topic", b"elsewhere"), ("id", b"a")]),
        draft("bad_label", image, [("label", b"\xff\xfe")]),
        draft("bad_label", image, [("label", b"x" * 257)]),
        draft("bad_label", image, [("label", b"\0\0\0\7")]),
        draft("bad_label", image, [("label", "cat\u202e".encode())]),
        *(draft("bad_weight", image, [*labelled, ("weight", w)]) for w in (b"-1", b"nan", b"inf", b"heavy", b"\xff")),
        draft("unknown_split", image, [*labelled, ("split", b"holdout")]),
        draft("too_many_classes", image, [("label", b"eleven")]),
        # A header name that is not UTF-8: the byte 0xE9, which no producer library lets through.
        draft(UNREADABLE, image, [*labelled, ("\udce9tat", b"x")]),
    ]


def good(count: int, seed: int = 0, images: Images | None = None) -> Iterator[Draft]:
    """Return images (digits when left out) with a split, some with a weight.

    The first three for each label are training samples. `images` must be in an order in which each third of these has
    all labels.
    """
    images = images or digits()
    learned_first = 3 * classes(images)
    random = np.random.default_rng(seed)
    for i in range(count):
        image, label = images[i % len(images)]
        split = "train" if i < learned_first else random.choice(["train", "validation", "test"], p=[0.8, 0.1, 0.1])
        weight = [("weight", random.choice([b"0", b"0.5", b"2"]))] if i % 10 == 9 else []
        yield Draft(None, image, [("label", label), ("split", split.encode()), *weight], str(split))


def mixed(count: int, seed: int = 0, images: Images | None = None) -> Iterator[Draft]:
    """Good records, every fifth without a split, and one bad record among 40, of every kind in turn."""
    images = images or digits()
    all_good_before = max(BAD_EVERY, 3 * classes(images))
    kinds = 0
    for i, draft in enumerate(good(count, seed, images)):
        if i >= all_good_before and i % BAD_EVERY == 0:
            variants = bad(*images[i % len(images)])
            yield variants[kinds % len(variants)]
            kinds += 1
        elif i >= all_good_before and i % 5 == 0:
            headers = [(name, value) for name, value in draft.headers if name != "split"]
            yield Draft(str(i).encode(), draft.value, headers, None)
        else:
            yield draft


def flipped(drafts: Iterable[Draft], period: int) -> Iterator[Draft]:
    """Give the second half of every `period` drafts wrong labels: each training sample has the next one's."""
    drafts = list(drafts)
    labels = sorted({dict(draft.headers)["label"] for draft in drafts if draft.fate == "train"})
    following = dict(zip(labels, [*labels[1:], *labels[:1]], strict=True))
    for i, draft in enumerate(drafts):
        if draft.fate == "train" and i % period >= period // 2:
            headers = dict(draft.headers)
            draft = draft._replace(headers=[*(headers | {"label": following[headers["label"]]}).items()])
        yield draft


def classes(images: Images) -> int:
    return len({label for _, label in images})


def whole_batches(drafts: Iterable[Draft], size: int) -> list[Draft]:
    """Cut the drafts behind the training sample that fills the last whole batch of `size`."""
    drafts = list(drafts)
    training = [i for i, draft in enumerate(drafts) if draft.fate == "train"]
    return drafts[: training[len(training) // size * size - 1] + 1]


def client(bootstrap_servers: str) -> dict[str, Any]:
    """Settings of all Kafka clients of the tests."""
    return {"bootstrap.servers": bootstrap_servers, "log_level": 2}  # a broker that a test stops is no news


def feed(bootstrap_servers: str, topic: str, drafts: Iterable[Draft], partitions: int = 1) -> list[Fed]:
    """Write records to the partitions in turn, and return them in the order of offsets."""
    producer = Producer(client(bootstrap_servers) | {"linger.ms": 5})
    raw = partial(raw_batches.send, KafkaSettings(bootstrap_servers=bootstrap_servers), topic)
    fed = send(producer, topic, drafts, partitions, raw)
    producer.flush()
    return fed


def send(
    producer: Producer,
    topic: str,
    drafts: Iterable[Draft],
    partitions: int = 1,
    raw: Callable[[bytes, int], int] | None = None,
) -> list[Fed]:
    """Write records as `feed` does, with the caller's producer. The list is filled as the broker answers.

    `raw` sends a batch to a partition and returns its offset. Unreadable records need it.
    """
    fed: list[Fed] = []

    def delivered(draft: Draft) -> Callable[[KafkaError | None, Message], None]:
        def on_delivery(error: KafkaError | None, message: Message) -> None:
            assert error is None, error
            place = topic, message.partition() or 0, message.offset() or 0
            fed.extend([Fed(*place, row, i) for i, row in enumerate(draft.rows)] or [Fed(*place, draft)])

        return on_delivery

    for i, draft in enumerate(drafts):
        partition = i % partitions
        if draft.fate == UNREADABLE:
            assert raw
            producer.flush()
            fed.append(Fed(topic, partition, raw(_raw_batch(draft), partition), draft))
            continue
        producer.produce(
            topic, draft.value, draft.key, partition, headers=[*draft.headers], on_delivery=delivered(draft)
        )
        producer.poll(0)
    return fed


def _raw_batch(draft: Draft) -> bytes:
    headers: list[tuple[bytes, bytes | None]] = [
        (name.encode(errors="surrogateescape"), value) for name, value in draft.headers
    ]
    return raw_batches.batch(raw_batches.payload([raw_batches.Raw(draft.value, headers, draft.key)]), 1)
