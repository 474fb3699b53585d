"""`check_head` refuses heads that break their contract, and says why."""

import pytest
import torch
from torch import Tensor

from stream_learner.learning.heads.prototype import Prototype
from stream_learner.networks.tensors import tensor
from stream_learner.testing import check_head


class NoMethods:
    expands = False


class Wide(Prototype):
    expands = None  # pyright: ignore[reportAssignmentType]


class Rounded(Prototype):
    def __init__(self, features: int, device: torch.device):
        super().__init__(features, device)
        self.sums_CF, self.weights_C = self.sums_CF.float(), self.weights_C.float()

    def observe(self, features_NF: Tensor, labels_N: Tensor, weights_N: Tensor) -> None:
        self.sums_CF, self.weights_C = self.sums_CF.double(), self.weights_C.double()
        super().observe(features_NF, labels_N, weights_N)
        self.sums_CF, self.weights_C = self.sums_CF.float(), self.weights_C.float()


class Transposed(Prototype):
    def solve(self, classes: int) -> tuple[Tensor, Tensor]:
        weight, bias = super().solve(classes)
        return weight.T, bias


class Constant(Prototype):
    def solve(self, classes: int) -> tuple[Tensor, Tensor]:
        weight, bias = super().solve(classes)
        return weight * 0, bias


class Latest(Prototype):
    """Knows only the last batch."""

    def observe(self, features_NF: Tensor, labels_N: Tensor, weights_N: Tensor) -> None:
        self.sums_CF *= 0.5
        self.weights_C *= 0.5
        super().observe(features_NF, labels_N, weights_N)


class Unweighted(Prototype):
    def observe(self, features_NF: Tensor, labels_N: Tensor, weights_N: Tensor) -> None:
        super().observe(features_NF, labels_N, torch.ones_like(weights_N))


class Guessing(Prototype):
    """Gives classes without samples a chance."""

    def solve(self, classes: int) -> tuple[Tensor, Tensor]:
        weight, bias = super().solve(classes)
        return weight, bias.clamp(min=-1e9)


class NeverRetires(Prototype):
    def retire(self, source: int, target: int | None) -> None:
        pass


class Drops(Prototype):
    """Drops samples that should move to another class."""

    def retire(self, source: int, target: int | None) -> None:
        del target
        super().retire(source, None)


class NoCopies(Prototype):
    def state_dict(self) -> dict[str, Tensor]:
        return {"sums": self.sums_CF, "weights": self.weights_C}


class SolvesOnce(Prototype):
    def solve(self, classes: int) -> tuple[Tensor, Tensor]:
        layer = super().solve(classes)
        self.sums_CF = self.sums_CF * 0.5
        return layer


class Counting(Prototype):
    """Keeps the number of batches, but not in its state."""

    batches = 0

    def observe(self, features_NF: Tensor, labels_N: Tensor, weights_N: Tensor) -> None:
        self.batches += 1
        super().observe(features_NF, labels_N, weights_N)

    def solve(self, classes: int) -> tuple[Tensor, Tensor]:
        weight, bias = super().solve(classes)
        return weight, torch.where(bias > -1e29, bias + 1e-5 * self.batches, bias)


class LoadsAnything(Prototype):
    def load_state_dict(self, state: dict[str, Tensor], classes: int) -> None:
        del classes
        self.sums_CF, self.weights_C = state["sums"].clone(), state["weights"].clone()


class LoadsAnyPrecision(Prototype):
    def load_state_dict(self, state: dict[str, Tensor], classes: int) -> None:
        super().load_state_dict({name: tensor.double() for name, tensor in state.items()}, classes)


class OfAnyClasses(Prototype):
    def load_state_dict(self, state: dict[str, Tensor], classes: int) -> None:
        super().load_state_dict(state, max(classes, len(state["weights"])))


class Buffered(Prototype):
    """Keeps features that no solve has needed, an empty tensor here."""

    def state_dict(self) -> dict[str, Tensor]:
        return super().state_dict() | {"waiting": torch.empty(0, 3, dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, Tensor], classes: int) -> None:
        tensor(state, "waiting", torch.float64, 0, 3)
        super().load_state_dict(state, classes)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (NoMethods, r"it lacks observe\(\), retire\(\), solve\(\), state_dict\(\), load_state_dict\(\)"),
        (Wide, "it needs the class attribute `expands`"),
        (Rounded, r"state_dict\(\) holds sums as torch.float32; use float64 for sums over a long run"),
        (Transposed, r"solve\(3\) returns weight torch.float32 \[12, 3\] .*, not float32 \[3, 12\] and \[3\]"),
        (Constant, "of well separated samples that it saw"),
        (Latest, "the result depends on the order of samples or on batches"),
        (Unweighted, "a sample of weight 2 must count like two samples"),
        (Guessing, r"the row of a class without samples must have weights 0 and the bias NEVER \(-1e\+30\)"),
        (NeverRetires, "the row of a class that retired must have weights 0"),
        (Drops, r"retire\(3, 1\) must give the same head as if all samples of class 3 had been"),
        (NoCopies, r"observe\(\) changes what state_dict\(\) returned before; return copies"),
        (SolvesOnce, r"solve\(\) changes the sums"),
        (Counting, "another head that loads its state continues differently"),
        (LoadsAnything, "accepts a state whose sums has the shape"),
        (LoadsAnyPrecision, r"accepts a state whose sums is torch.float32; check the names, types"),
        (OfAnyClasses, "accepts a state with 5 classes if 4 are known"),
    ],
)
def test_it_is_refused(wrong, why):
    with pytest.raises(AssertionError, match=f"(?s)^{wrong.__name__}: .*{why}"):
        check_head(wrong)


def test_a_head_with_an_empty_tensor_passes():
    check_head(Buffered)
