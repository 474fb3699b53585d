"""How much of a class the model knew better once."""

from typing import Any

from stream_learner.contract.vocabulary import Label
from stream_learner.contract.window import Accuracy, ClassForgetting, Forgetting
from stream_learner.learning.stored import Share, parse


class BestRecalls:
    """The best recall that each class had at any release, on the test samples held then."""

    def __init__(self):
        self._best: dict[Label, float] = {}

    def forgetting(self, test: Accuracy) -> Forgetting:
        """Per class, the best recall at an earlier release minus the recall in `test`; below 0 where it never was
        better. Chaudhry et al. 2018, "Riemannian Walk for Incremental Learning" (arXiv:1801.10112), with releases in
        the place of tasks."""
        per_class = [
            ClassForgetting(label=c.label, best=best, forgetting=best - c.correct / c.total)
            for c in test.per_class
            if (best := self._best.get(c.label)) is not None
        ]
        mean = sum(c.forgetting for c in per_class) / len(per_class) if per_class else None
        return Forgetting(mean=mean, per_class=per_class)

    def released(self, test: Accuracy) -> None:
        """A model of that accuracy was released."""
        for c in test.per_class:
            self._best[c.label] = max(self._best.get(c.label, 0.0), c.correct / c.total)

    def forget(self, label: Label) -> None:
        """Drop a label that retired."""
        self._best.pop(label, None)

    def state_dict(self) -> list[Any]:
        """Pairs of label and recall: JSON's keys would turn the label 7 into "7"."""
        return [list(pair) for pair in self._best.items()]

    def load_state_dict(self, document: list[Any]) -> None:
        self._best = dict(parse(document, list[tuple[Label, Share]]))
