"""Memories of the size that the settings choose. Each shard has an equal share of it."""

from stream_learner.config import Settings
from stream_learner.contract.vocabulary import Split
from stream_learner.learning.memory.balanced import BalancedMemory
from stream_learner.learning.memory.pixels import CACHE_BYTES


def replay_memory(settings: Settings, shard: int, *, replays: bool, stores_logits: bool) -> BalancedMemory:
    """Return a shard's memory to replay from. It stays empty unless `replays` is true."""
    memory = settings.memory
    max_items = memory.max_items if replays else 0
    return _memory(settings, shard, max_items, memory.max_bytes, stores_logits=stores_logits)


def held_out_sets(settings: Settings, shard: int) -> dict[Split, BalancedMemory]:
    """Return a shard's sets of validation and test samples."""
    model, held_out = settings.model, settings.held_out
    # A set is decoded as a whole, so the size of its decoded images is limited too.
    max_items = min(held_out.max_items, held_out.max_bytes // (model.height * model.width * model.channels))
    return {
        split: _memory(settings, shard, max_items, held_out.max_bytes, stores_groups=True)
        for split in (Split.VALIDATION, Split.TEST)
    }


def _memory(settings: Settings, shard: int, max_items: int, max_bytes: int, **columns: bool) -> BalancedMemory:
    model, shards = settings.model, settings.run.shards
    shape = model.height, model.width, model.channels
    limits = max_items // shards, max_bytes // shards, settings.memory.segment_bytes
    # Shards with room for fewer items than classes keep other classes each.
    return BalancedMemory(
        shape, *limits, settings.run.seed, first_dropped=shard, cache_bytes=CACHE_BYTES // shards, **columns
    )
