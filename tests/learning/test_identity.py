"""The digest of the settings that affect what is learned. Manifests before and after a change show it."""

from pathlib import Path

import pytest

from stream_learner import config
from stream_learner.config import Settings
from stream_learner.learning.identity import DECIDING, identity, settings_digest


def test_every_section_of_the_settings_is_decided_on() -> None:
    """A new section belongs to `DECIDING`, or here if it cannot change what is learned from given batches."""
    of_no_account = {"checkpoint", "kafka", "log", "monitoring", "recovery", "rejects", "run", "security", "topics"}
    of_readers = {"follow", "serve"}
    # `served` decides on a part of the state that is not learned, if it is there. `prequential` may have the default.
    assert Settings.model_fields.keys() == DECIDING | of_no_account | of_readers | {"served", "prequential"}


def digest_of(*overrides: str) -> str:
    settings = config.load(None, ["run.id=digits", 'input.topics=["images"]', *overrides])
    return settings_digest(settings, identity(settings))


@pytest.mark.parametrize(
    "override",
    [
        "run.seed=1",
        "batch.size=16",
        "drift.boost_records=5",
        "held_out.max_items=9",
        "input.max_image_pixels=100",
        'labels.aliases={ "kitty" = "cat" }',
        'labels.allowed=["cat"]',
        "labels.min_records=2",
        "learning.learning_rate=0.1",
        "learning.steps_per_batch=2",
        "memory.replay_size=5",
        "memory.segment_bytes=1000000",
        "model.freeze=true",
        "model.max_classes=9",
        "prequential.share=0.5",
        "release.every_records=9",
        "split.test=0.1",
        "weights.max_weight=2",
    ],
)
def test_it_changes_with_a_setting_that_decides(override: str) -> None:
    assert digest_of(override) != digest_of()


@pytest.mark.parametrize(
    "override",
    [
        "run.id=another",
        'input.topics=["images", "more"]',  # the ledger has the records
        "batch.linger_s=3",
        "checkpoint.keep=1",
        "kafka.client_id=another",
        "learning.device=cpu",  # `arithmetic` has what computes
        "learning.threads=3",
        "memory.replay_size=96",  # what it is when unset
        "model.freeze=false",
        "monitoring.port=0",
        "release.inline_max_bytes=0",
    ],
)
def test_it_stays_with_a_setting_that_does_not(override: str) -> None:
    assert digest_of(override) == digest_of()


def test_allowed_labels_count_and_not_where_they_are_read(tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_text("dog\ncat\n")
    named = digest_of(f'labels.allowed="{file}"')
    assert named == digest_of('labels.allowed=["cat", "dog"]')
    file.write_text("cat\n")
    assert digest_of(f'labels.allowed="{file}"') != named
