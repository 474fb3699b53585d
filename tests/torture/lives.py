"""Lives of a worker: how each ends, drawn at random."""

from collections.abc import Collection
from random import Random
from typing import NamedTuple

from child import Point

RANDOM_S = 3.0
AGAIN_S = 1.0

# The collaborator and function of each, and the number of calls in every life that is long enough.
EFFECTS = {
    "snapshot": ("driver", "snapshot", 2),
    "serialise": ("tensors", "encode", 3),
    "put": ("store", "put", 3),
    "flush": ("os", "fsync", 12),
    "begin": ("transaction", "begin", 2),
    "send": ("transaction", "send", 6),
    "confirm": ("transaction", "confirm", 6),
    "offsets": ("transaction", "offsets", 2),
    "commit": ("transaction", "commit", 2),
    "read back": ("read_back", "verify", 2),
    "delete": ("retention", "delete_dropped", 2),
}
LEARNING = {
    "decision": ("driver", "decide", 2),
    "roll-back": ("memory", "drop_since", 1),  # in the middle of it
}
RECOVERY = {
    "topics check": ("cluster", "check_topics", 1),
    "election": ("turn", "await_turn", 1),
    "reading the checkpoints": ("cluster", "newest_manifest", 2),
    "fetch": ("store", "fetch", 3),  # the newest state, the last release's, parts
    "fence": ("transaction", "fence", 1),
    "restore": ("learner", "_load", 1),
    "restore of the release": ("learner", "_load_released", 1),
}
POINTS = EFFECTS | LEARNING | RECOVERY


class AtPoint(NamedTuple):
    """Ends at a point of the protocol."""

    name: str
    point: Point


class AtMoment(NamedTuple):
    """Ends `after_s` seconds after its start."""

    name: str
    after_s: float


class Zombie(NamedTuple):
    """Is stopped at a point, and wakes when another worker has taken over and published. It must end by itself.

    The other worker is killed `after_s` seconds later.
    """

    name: str
    point: Point
    after_s: float


class Relay(NamedTuple):
    """Is killed `after_s` seconds after a standby joined. The standby takes over and is stopped in order."""

    name: str
    after_s: float


Life = AtPoint | AtMoment | Zombie | Relay

# Of a run without a manifest, then without a marker. Later lives do not come there.
FIRST: list[Life] = [
    AtPoint("half put", Point("store", "put", half=True)),
    AtPoint("before commit", Point("transaction", "commit", before=True)),
    AtPoint("before write marker", Point("checkpoint_writer", "write_marker", before=True)),
    AtPoint("before write marker, recovering", Point("recover", "write_marker", before=True)),
    AtPoint("after write marker, recovering", Point("recover", "write_marker")),
]
FIRST_OF_ONE_PARTITION: list[Life] = [AtPoint("after write marker", Point("checkpoint_writer", "write_marker"))]


def draw(random: Random, first: list[Life], count: int, points: Collection[str]) -> list[Life]:
    """Return `count` lives: `first`, then hands with a life for each of `points` and of each other kind.

    Each hand is shuffled, and its calls and moments are drawn again.
    """
    lives = list(first)
    hands = 0
    while len(lives) < count:
        # A point that one hand has before a call, the next one has after it.
        hand: list[Life] = [_at_point(random, name, (place + hands) % 2 == 0) for place, name in enumerate(points)]
        hand.append(AtPoint("half put", Point("store", "put", random.randint(1, 2), half=True)))
        hand += [AtMoment("at random", random.uniform(0, RANDOM_S)) for _ in range(2)]
        hand += [AtMoment("again within a second", random.uniform(0, AGAIN_S)) for _ in range(3)]
        hand += [_zombie(random), Relay("beside a standby", random.uniform(0, AGAIN_S))]
        random.shuffle(hand)
        lives += hand
        hands += 1
    return lives[:count]


def _at_point(random: Random, name: str, before: bool) -> AtPoint:
    collaborator, function, calls = POINTS[name]
    when = "before" if before else "after"
    return AtPoint(f"{when} {name}", Point(collaborator, function, random.randint(1, calls), before))


def _zombie(random: Random) -> Zombie:
    collaborator, function, _ = EFFECTS[random.choice([*EFFECTS])]
    point = Point(collaborator, function, before=random.random() < 0.5)
    return Zombie("beside a zombie", point, random.uniform(0, AGAIN_S))
