"""`check_weight_policy` refuses policies that break their contract, and says why."""

from typing import Any

import numpy as np
import pytest

from stream_learner.config import WeightsSettings
from stream_learner.learning.weighting import Arrivals, Policy, Times
from stream_learner.testing import check_weight_policy


class NoMethods:
    stored = True


class Fair(Policy):
    stored = True

    def factors(self, arrivals: Arrivals) -> np.ndarray:
        return np.ones(len(arrivals.labels))


class Unsaid(Policy):
    def factors(self, arrivals: Arrivals) -> np.ndarray:
        return np.ones(len(arrivals.labels))


class Single(Fair):
    def factors(self, arrivals: Arrivals) -> np.ndarray:
        return arrivals.probabilities()


class Negative(Fair):
    def factors(self, arrivals: Arrivals) -> np.ndarray:
        return arrivals.probabilities() - 0.5 * np.ones(len(arrivals.labels))


class Unlimited(Fair):
    def factors(self, arrivals: Arrivals) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return 1 / arrivals.probabilities().astype(np.float64)


class InPlace(Fair):
    def factors(self, arrivals: Arrivals) -> np.ndarray:
        arrivals.record_weights[:] = np.minimum(arrivals.record_weights, 1)
        return arrivals.record_weights


class NeedsReplay(Fair):
    stored = False

    def replayed(self, times: Times) -> np.ndarray:
        return np.ones(len(times.admitted)) * times.admitted.max()


class Counting(Fair):
    """Keeps the number of samples. What is wrong with its state is in the subclasses."""

    def __init__(self, settings: WeightsSettings):
        super().__init__(settings)
        self.seen = [0]

    def factors(self, arrivals: Arrivals) -> np.ndarray:
        self.seen[0] += len(arrivals.labels)
        return np.full(len(arrivals.labels), 1 / self.seen[0])

    def state_dict(self) -> dict[str, Any]:
        return {"seen": list(self.seen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = list(state.get("seen", [0]))


class NotSaved(Counting):
    def state_dict(self) -> dict[str, Any]:
        return {}


class NoCopies(Counting):
    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}


class OfNumPy(Counting):
    def state_dict(self) -> dict[str, Any]:
        return {"seen": np.array(self.seen)}


class OfTuples(Counting):
    def state_dict(self) -> dict[str, Any]:
        return {"seen": (*self.seen,)}


class NeverStartsAgain(Counting):
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = list(state.get("seen", self.seen))


class NeedsAState(Counting):
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = list(state["seen"])


class OfKnownClasses(Counting):
    def retire(self, source: int, target: int | None) -> None:
        del target
        self.seen[source] = 0


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (NoMethods, r"it lacks factors\(\), replayed\(\), retire\(\)"),
        (Unsaid, "it needs the class attribute `stored`, True or False"),
        (Single, r"factors\(\) of 1 samples returns float32 \[1\], not float64 \[1\]"),
        (Negative, "returns negative factors; a factor is at least 0"),
        (Unlimited, "returns factors that are not finite; limit them"),
        (InPlace, r"factors\(\) changes the arrays that it gets"),
        (NeedsReplay, r"replayed\(\) of 0 samples raised ValueError"),
        (NotSaved, "another instance that loads its state continues differently; keep all that affects"),
        (NoCopies, r"a batch changes what state_dict\(\) returned before; return a copy"),
        (OfNumPy, "must return a JSON document: .* ndarray is not JSON serializable"),
        (OfTuples, "must return a JSON document: .*; this one changes when it is written"),
        (NeverStartsAgain, r"load_state_dict\({}\) does not start again"),
        (NeedsAState, r"load_state_dict\({}\) raised KeyError"),
        (OfKnownClasses, r"retire\(1, 0\) before the first batch raised IndexError"),
    ],
)
def test_it_is_refused(wrong, why):
    with pytest.raises(AssertionError, match=f"(?s)^{wrong.__name__}: .*{why}"):
        check_weight_policy(wrong)


def test_a_policy_with_a_state_of_its_own_passes():
    check_weight_policy(Counting)
