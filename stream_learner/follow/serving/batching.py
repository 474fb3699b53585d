"""Dynamic batching: requests that wait at the same time are computed together."""

import asyncio
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from stream_learner.follow.releases import Release
from stream_learner.follow.serving.protocol import Images, RequestError
from stream_learner.formats import RejectError

MAX_BATCH = 64
"""Images in a batch. A request with more images is a batch of its own."""
# A longer batch is computed on a thread, so that the event loop serves other requests meanwhile. For a shorter one, the
# thread would cost more time than it saves.
INLINE_S = 0.002


class Answer(NamedTuple):
    """Logits and probabilities, float32 [N, classes]."""

    logits: np.ndarray
    probabilities: np.ndarray


class OverloadedError(Exception):
    """Too many images wait."""


class _Waiting(NamedTuple):
    images: Images
    release: Release
    answer: asyncio.Future[Answer]


class Batcher:
    """Computes the images of concurrent requests in batches. All images of a batch have one release."""

    def __init__(self, max_waiting: int):
        """`max_waiting` is the number of images that may wait."""
        self._max_waiting = max_waiting
        self._waiting: deque[_Waiting] = deque()
        self._images = 0
        self._thread = ThreadPoolExecutor(1, "compute")
        self._running: asyncio.Task[None] | None = None
        self._measured: Release | None = None
        self._image_s = 0.0  # CPU time of an image with the release `_measured`, in seconds

    async def compute(self, release: Release, images: Images) -> Answer:
        """Compute images: uint8 [N, H, W, C] of the network's size, or N encoded images.

        Raises RequestError for images that cannot be decoded, StreamLearnerError when the release cannot be computed,
        OverloadedError.
        """
        if self._images and self._images + len(images) > self._max_waiting:
            raise OverloadedError
        loop = asyncio.get_running_loop()
        waiting = _Waiting(images, release, loop.create_future())
        self._waiting.append(waiting)
        self._images += len(images)
        if self._running is None:
            self._running = loop.create_task(self._run())  # runs after the requests that have arrived already
        return await waiting.answer

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._take():
            if self._is_short(batch):
                answers = self._computed(batch)
                await asyncio.sleep(0)
            else:
                answers = await loop.run_in_executor(self._thread, self._computed, batch)
            for waiting, answer in zip(batch, answers, strict=True):
                if waiting.answer.done():  # the request was cancelled
                    continue
                if isinstance(answer, Answer):
                    waiting.answer.set_result(answer)
                else:
                    waiting.answer.set_exception(answer)
        self._running = None

    def _take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        images = 0
        while self._waiting:
            first = self._waiting[0]
            if batch and (images + len(first.images) > MAX_BATCH or first.release is not batch[0].release):
                break
            self._waiting.popleft()
            self._images -= len(first.images)
            if not first.answer.done():
                batch.append(first)
                images += len(first.images)
        return batch

    def _is_short(self, batch: list[_Waiting]) -> bool:
        images = 0
        for waiting in batch:
            if not isinstance(waiting.images, np.ndarray):  # decoding may take long
                return False
            images += len(waiting.images)
        return batch[0].release is self._measured and images * self._image_s < INLINE_S

    def _computed(self, batch: list[_Waiting]) -> list[Answer | Exception]:
        """Return an answer or an error for each request."""
        release = batch[0].release
        try:
            decoded = [_pixels(release, waiting.images) for waiting in batch]
            good = [images for images in decoded if isinstance(images, np.ndarray)]
            if not good:
                return [images for images in decoded if isinstance(images, RequestError)]
            began = time.thread_time()
            logits, probabilities = release.compute(good[0] if len(good) == 1 else np.concatenate(good))
            image_s = (time.thread_time() - began) / len(logits)
            # The minimum, because an image takes less time in a larger batch.
            self._image_s = min(image_s, self._image_s) if release is self._measured else image_s
            self._measured = release
        except Exception as error:  # noqa: BLE001 (an error of any kind is an answer, or the requests would wait)
            return [error] * len(batch)
        answers: list[Answer | Exception] = []
        start = 0
        for images in decoded:
            if isinstance(images, RequestError):
                answers.append(images)
                continue
            part = slice(start, start + len(images))
            start = part.stop
            answers.append(Answer(logits[part], probabilities[part]))
        return answers


def _pixels(release: Release, images: Images) -> np.ndarray | RequestError:
    try:
        return images if isinstance(images, np.ndarray) else release.preprocess(images)
    except RejectError as error:
        return RequestError(f"an image cannot be decoded: {error}")
