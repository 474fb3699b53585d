"""Outcome of a run: its results and its cost."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from benchmarks import scores
from benchmarks.scores import Point


class Moment(NamedTuple):
    """Accuracy of a model at a point of its stream: after a number of records, views and seconds of learning."""

    records: int
    views: int
    seconds: float
    point: Point


@dataclass
class Outcome:
    """Result of a run.

    `moments` are exams along the stream; the last one is at its end and on all images. `last_steps` are the exams of
    the last 100 steps, if there are any.

    A view is an image that went forward and backward through the trained network. Images that went only through a
    teacher or an exam are counted separately. `seconds` excludes exams.
    """

    moments: list[Moment] = field(default_factory=list)
    last_steps: list[Point] = field(default_factory=list)
    steps: int = 0
    views: int = 0
    teacher_views: int = 0
    evaluation_views: int = 0
    seconds: float = 0.0

    def scored(self) -> dict[str, Any]:
        """Return as JSON: `scores.summary`, the costs, and the `curve` of accuracy on the classes seen so far."""
        return {
            **scores.summary([moment.point for moment in self.moments], self.last_steps),
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
                    "accuracy": accuracy,
                }
                for moment in self.moments
                if (accuracy := scores.accuracy_of_seen(moment.point)) is not None
            ],
        }
