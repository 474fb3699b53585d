"""What a run gave and what it cost."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from benchmarks import scores
from benchmarks.scores import Point


class Moment(NamedTuple):
    """What a model that has seen so many records of its stream knows, after so many views and seconds of learning."""

    records: int
    views: int
    seconds: float
    point: Point


@dataclass
class Outcome:
    """`moments` are examinations along the stream, the last one at its end and on all images; `last_steps` those of
    the last 100 steps, where there were any.

    A view is an image that went forward and backward through the trained network; what went through a teacher or an
    examination, and never backward, is counted apart. `seconds` leave examinations out.
    """

    moments: list[Moment] = field(default_factory=list)
    last_steps: list[Point] = field(default_factory=list)
    steps: int = 0
    views: int = 0
    teacher_views: int = 0
    evaluation_views: int = 0
    seconds: float = 0.0

    def scored(self) -> dict[str, Any]:
        """As JSON: final, anytime and worst-case accuracy (0..1), the spread over the last 100 steps, the costs, and
        the `curve` of accuracy on the classes seen so far. None is what the examinations do not tell."""
        points = [moment.point for moment in self.moments]
        along = len(points) > 1
        return {
            "final": scores.accuracy(points[-1]),
            "anytime": scores.anytime(points) if along else None,
            "worst": scores.worst(points) if along else None,
            "last_100_steps": scores.spread(self.last_steps) if len(self.last_steps) > 1 else None,
            "steps": self.steps,
            "views": self.views,
            "teacher_views": self.teacher_views,
            "evaluation_views": self.evaluation_views,
            "seconds": round(self.seconds, 1),
            "curve": [
                {
                    "records": moment.records,
                    "views": moment.views,
                    "seconds": round(moment.seconds, 1),
                    "accuracy": scores.accuracy_of_seen(moment.point),
                }
                for moment in self.moments
            ],
        }
