"""Forgetting: how much better an earlier release predicted each class."""

from typing import Any

from stream_learner.contract.vocabulary import Label
from stream_learner.contract.window import Accuracy, ClassForgetting, Forgetting
from stream_learner.learning.stored import Share, parse


class BestRecalls:
    """The best recall of each class in all releases. Each release was scored on the test samples of its time."""

    def __init__(self):
        self._best: dict[Label, float] = {}

    def forgetting(self, test: Accuracy) -> Forgetting:
        """Return for each class the best recall at an earlier release minus the recall in `test`.

        The difference is negative if the recall is higher than at every earlier release. Chaudhry et al. 2018,
        "Riemannian Walk for Incremental Learning" (arXiv:1801.10112), with releases in place of tasks.
        """
        per_class = [
            ClassForgetting(label=c.label, best=best, forgetting=best - c.correct / c.total)
            for c in test.per_class
            if (best := self._best.get(c.label)) is not None
        ]
        mean = sum(c.forgetting for c in per_class) / len(per_class) if per_class else None
        return Forgetting(mean=mean, per_class=per_class)

    def released(self, test: Accuracy) -> None:
        """Update the best recalls after the release of a model with this accuracy."""
        for c in test.per_class:
            self._best[c.label] = max(self._best.get(c.label, 0.0), c.correct / c.total)

    def forget(self, label: Label) -> None:
        """Drop the recall of a label that retired."""
        self._best.pop(label, None)

    def state_dict(self) -> list[Any]:
        """Return pairs of label and recall, because JSON keys would turn the label 7 into "7"."""
        return [list(pair) for pair in self._best.items()]

    def load_state_dict(self, document: list[Any]) -> None:
        self._best = dict(parse(document, list[tuple[Label, Share]]))
