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
# Turns of the event loop without a further request, after which a batch is computed.
QUIET_TURNS = 3
# A longer batch is computed on a thread, so that the event loop serves other requests meanwhile. For a shorter one, the
# thread would cost more time than it saves.
INLINE_S = 0.002
# Images of different requests are decoded in turns of this time, because a small file may hold millions of pixels.
TURN_S = 0.01


class Answer(NamedTuple):
    """Logits and probabilities, float32 [N, classes]."""

    logits: np.ndarray
    probabilities: np.ndarray


class OverloadedError(Exception):
    """Too many images wait."""


class _Waiting(NamedTuple):
    images: np.ndarray
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
        self._decoder = ThreadPoolExecutor(1, "decode")
        self._running: asyncio.Task[None] | None = None
        self._measured: Release | None = None
        self._image_s = 0.0  # CPU time of an image with the release `_measured`, in seconds

    async def compute(self, release: Release, images: Images) -> Answer:
        """Compute images: uint8 [N, H, W, C] of the network's size, or N encoded images.

        Raises RequestError for images that cannot be decoded, StreamLearnerError when the release cannot be computed,
        OverloadedError.
        """
        count = len(images)
        if self._images and self._images + count > self._max_waiting:
            raise OverloadedError
        self._images += count
        if not isinstance(images, np.ndarray):
            try:
                images = await self._decoded(release, images)
            except BaseException:
                self._images -= count
                raise
        loop = asyncio.get_running_loop()
        waiting = _Waiting(images, release, loop.create_future())
        self._waiting.append(waiting)
        if self._running is None:
            self._running = loop.create_task(self._run())
        return await waiting.answer

    async def _decoded(self, release: Release, images: list[bytes]) -> np.ndarray:
        loop, pixels = asyncio.get_running_loop(), []
        while len(pixels) < len(images):
            pixels += await loop.run_in_executor(self._decoder, _decode, release, images[len(pixels) :])
        return np.concatenate(pixels)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := await self._gathered():
            if self._is_short(batch):
                answers = self._computed(batch)
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

    async def _gathered(self) -> list[_Waiting]:
        """Return the next batch, once consecutive turns of the event loop bring no further request.

        An image takes less time in a larger batch, so requests that arrive together also get their answers sooner.
        """
        quiet_turns = 0
        while quiet_turns < QUIET_TURNS:
            before = len(self._waiting)
            await asyncio.sleep(0)  # also before a full batch, so that other requests are served between two batches
            if self._images >= MAX_BATCH:
                break
            quiet_turns = 0 if len(self._waiting) > before else quiet_turns + 1
        return self._take()

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
        images = sum(len(waiting.images) for waiting in batch)
        return batch[0].release is self._measured and images * self._image_s < INLINE_S

    def _computed(self, batch: list[_Waiting]) -> list[Answer] | list[Exception]:
        """Return an answer or an error for each request."""
        release = batch[0].release
        images = [waiting.images for waiting in batch]
        try:
            began = time.thread_time()
            logits, probabilities = release.compute(images[0] if len(images) == 1 else np.concatenate(images))
            image_s = (time.thread_time() - began) / len(logits)
            # The minimum, because an image takes less time in a larger batch.
            self._image_s = min(image_s, self._image_s) if release is self._measured else image_s
            self._measured = release
        except Exception as error:  # noqa: BLE001 (an error of any kind is an answer, or the requests would wait)
            return [error] * len(batch)
        answers: list[Answer] = []
        start = 0
        for one in images:
            part = slice(start, start + len(one))
            start = part.stop
            answers.append(Answer(logits[part], probabilities[part]))
        return answers


def _decode(release: Release, images: list[bytes]) -> list[np.ndarray]:
    """Decode at least one image, and further ones until the turn is over. Raises RequestError."""
    pixels, end = [], time.monotonic() + TURN_S
    for image in images:
        try:
            pixels.append(release.preprocess([image]))
        except RejectError as error:
            raise RequestError(f"an image cannot be decoded: {error}") from None
        if time.monotonic() > end:
            break
    return pixels
