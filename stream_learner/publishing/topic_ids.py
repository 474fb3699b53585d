"""Check topic ids. A topic that was deleted and created again has a new id, and its offsets mean other records."""

from stream_learner.errors import InputError

NEW_RUN = "Choose a new run.id to learn from the new topic"


def check_topic_ids(known: dict[str, str], current: dict[str, str], advice: str = NEW_RUN) -> None:
    """Raise InputError with `advice` when a topic was deleted and created again.

    A topic without a known id passes: the run has not learned from it yet.
    """
    for topic, topic_id in current.items():
        if known.get(topic, topic_id) != topic_id:
            raise InputError(
                f"topic {topic} was deleted and created again: its offsets now refer to other records. {advice}"
            )
