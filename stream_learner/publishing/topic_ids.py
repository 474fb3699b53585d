"""The ids of a run's topics: offsets mean the same records only as long as a topic keeps its id."""

from stream_learner.errors import InputError


def check_topic_ids(learned_from: dict[str, str], current: dict[str, str]) -> None:
    """Raise InputError when a topic that the run learned from was deleted and created again.

    A topic without a known id passes: the run has not learned from it yet.
    """
    for topic, topic_id in current.items():
        if learned_from.get(topic, topic_id) != topic_id:
            raise InputError(
                f"topic {topic} was deleted and created again: its offsets now refer to other records. Choose a new "
                "run.id to learn from the new topic"
            )
