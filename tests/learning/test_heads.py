"""Solved heads, alone and in a learner."""

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from digit_stream import (
    DIGITS_NHWC,
    MODELS,
    TARGETS,
    TEST,
    VALIDATION,
    as_bytes,
    batch,
    decided,
    digits_of,
    driver_of,
    learn,
    learned,
    position,
    resumed,
    settings,
    stream,
    tensors_of,
)
from safetensors.torch import save_file

from stream_learner import networks as models
from stream_learner.config import Settings, load
from stream_learner.contract import tensors
from stream_learner.contract.vocabulary import Reason
from stream_learner.errors import UsageError
from stream_learner.learning.evaluation import predict
from stream_learner.learning.heads import StatisticsHead
from stream_learner.learning.heads.ridge import PENALTIES
from stream_learner.learning.heads.statistics import NEVER
from stream_learner.learning.outcome import Candidate
from stream_learner.networks.random_features import RandomFeatures
from stream_learner.networks.small import MLP
from stream_learner.networks.tensors import as_arrays, as_tensors
from stream_learner.publishing.snapshot import Snapshot
from stream_learner.registry import HEADS, STRATEGIES
from stream_learner.run.driver import Driver

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "models.md"
CPU = torch.device("cpu")
SOLVED = {name: head for name, head in HEADS.items() if head is not None}
for_every_head = pytest.mark.parametrize("name", SOLVED)

# Real features with real faults: some pixels are always 0, and the means are far from it.
FEATURES = DIGITS_NHWC.reshape(len(DIGITS_NHWC), -1).astype(np.float32) / 255
F = FEATURES.shape[1]
WEIGHTS = np.random.default_rng(0).choice(np.array([0, 0.25, 1, 2, 10], np.float32), len(FEATURES))
LAST = FEATURES[1500:], TARGETS[1500:]  # never observed


def observe(head: StatisticsHead, indices, weights=WEIGHTS) -> None:
    arrays = FEATURES[indices], TARGETS[indices].astype(np.int64), weights[indices].astype(np.float32)
    head.observe(*map(torch.from_numpy, arrays))


def head_of(name: str, indices, weights=WEIGHTS) -> StatisticsHead:
    """The head after one observation of these digits."""
    head = SOLVED[name](F, CPU)
    observe(head, indices, weights)
    return head


def solved(head: StatisticsHead, classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    weight, bias = head.solve(classes)
    assert (weight.shape, bias.shape) == ((classes, F), (classes,))
    assert weight.dtype == bias.dtype == torch.float32
    return weight.numpy(), bias.numpy()


@for_every_head
def test_a_class_that_nobody_takes_over_is_silent_and_changes_no_other(name):
    indices = np.arange(1500)
    head = head_of(name, indices)
    weight, bias = solved(head)
    head.retire(3, None)
    again = SOLVED[name](F, CPU)
    again.load_state_dict(head.state_dict(), 10)
    for one in (head, again):
        weight_, bias_ = solved(one)
        others = np.arange(10) != 3
        assert np.allclose(weight_[others], weight[others], rtol=0, atol=1e-6)
        assert np.allclose(bias_[others], bias[others], rtol=0, atol=1e-6)
        assert not weight_[3].any()
        assert bias_[3] == np.float32(NEVER)


def test_a_class_that_comes_back_has_the_mean_of_what_came_since():
    head = head_of("prototype", np.arange(700))
    head.retire(3, None)
    late = np.flatnonzero(TARGETS == 3)[-40:]
    observe(head, late)
    weight, _ = solved(head)
    assert np.allclose(weight[3], np.average(FEATURES[late], 0, WEIGHTS[late]), atol=1e-6)


def closed_form(indices, penalty: float, weights=WEIGHTS) -> np.ndarray:
    """Logits of the last digits by ridge regression in one piece: rows scaled by the root of their weight, centred."""
    x, y, a = FEATURES[indices].astype(np.float64), np.eye(10)[TARGETS[indices]], weights[indices].astype(np.float64)
    mean_x, mean_y = np.average(x, 0, a), np.average(y, 0, a)
    rooted_x, rooted_y = np.sqrt(a)[:, None] * (x - mean_x), np.sqrt(a)[:, None] * (y - mean_y)
    w = np.linalg.solve(rooted_x.T @ rooted_x + penalty * np.eye(F), rooted_x.T @ rooted_y)
    return (LAST[0] - mean_x) @ w + mean_y


def cross_validated_penalty(indices) -> float:
    """Return the penalty of least generalised cross-validation score, computed from the samples.

    Weights are 0, 1 or 2.
    """
    rows = np.repeat(indices, WEIGHTS[indices].astype(int))
    x, y = FEATURES[rows].astype(np.float64), np.eye(10)[TARGETS[rows]]
    scale, n = np.square(x).sum(0).mean(), len(x)
    x = x - x.mean(0)

    def score(penalty: float) -> float:
        inverse = np.linalg.inv(x.T @ x + penalty * np.eye(F))
        fitted = x @ (inverse @ (x.T @ y)) + y.mean(0)
        return np.square(y - fitted).sum() / (n - 1 - np.trace(inverse @ x.T @ x)) ** 2

    return min((scale * relative for relative in PENALTIES), key=score)


def streamed(name: str, indices: np.ndarray, seed: int) -> StatisticsHead:
    """The head after these digits in another order, in batches of 1 to 40, stopped and resumed between them."""
    rng = np.random.default_rng(seed)
    head = SOLVED[name](F, CPU)
    for part in np.split(rng.permutation(indices), np.cumsum(rng.integers(1, 41, len(indices) // 20))):
        if len(part):
            observe(head, part)
        before = head.state_dict()
        head = SOLVED[name](F, CPU)
        head.load_state_dict(before, classes=10)
    return head


# -- by themselves


@pytest.mark.parametrize("count", [20, 100, 1500])
def test_ridge_is_the_closed_form_in_one_piece(count):
    indices = np.flatnonzero(np.isin(WEIGHTS[:count], [0, 1, 2]))
    weight, bias = solved(streamed("ridge", indices, seed=count))
    wanted = closed_form(indices, cross_validated_penalty(indices))
    known = np.unique(TARGETS[indices[WEIGHTS[indices] > 0]])
    assert np.allclose((LAST[0] @ weight.T + bias)[:, known], wanted[:, known], rtol=0, atol=1e-4)


def test_ridge_chooses_a_good_penalty():
    indices = np.arange(100)
    weight, bias = solved(head_of("ridge", indices, np.ones(len(TARGETS))))
    accuracy = ((LAST[0] @ weight.T + bias).argmax(1) == LAST[1]).mean()
    of_each = [(closed_form(indices, 10.0**k, np.ones(len(TARGETS))).argmax(1) == LAST[1]).mean() for k in range(-4, 5)]
    assert accuracy > max(of_each) - 0.02
    assert accuracy > min(of_each) + 0.05


def test_prototypes_are_the_weighted_means_and_the_nearest_is_predicted():
    weight, bias = solved(head_of("prototype", np.arange(1500)))
    x, y, a = FEATURES[:1500].astype(np.float64), TARGETS[:1500], WEIGHTS[:1500]
    means = np.stack([np.average(x[y == c], 0, a[y == c]) for c in range(10)])
    assert np.allclose(weight, means, rtol=0, atol=1e-6)
    distances = np.square(LAST[0][:, None] - means).sum(2)
    assert np.array_equal((LAST[0] @ weight.T + bias).argmax(1), distances.argmin(1))


@for_every_head
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_few_samples_give_a_finite_head_that_knows_them(name, count):
    indices = np.array(digits_of(range(count), count))
    weight, bias = solved(head_of(name, indices, np.full(len(TARGETS), 0.1)))
    assert np.isfinite(weight).all()
    assert np.array_equal((FEATURES[indices] @ weight.T + bias).argmax(1), TARGETS[indices])


# -- in a learner


def frozen(name: str, **overrides) -> Settings:
    return settings(**{"model__head": name, "model__random_features": 80} | overrides)


def candidate_of(driver: Driver) -> Candidate:
    candidate = decided(driver).candidate
    assert candidate
    return candidate


def rebuilt(candidate: Candidate) -> models.ImageClassifier:
    """The network as downstream builds it: from the manifest's words and the release's bytes."""
    network = models.build(candidate.model)
    network.load_state_dict(as_tensors(tensors.decode(tensors.encode(as_arrays(candidate.parameters)))))
    return network.eval()


@for_every_head
def test_solving_falls_on_the_same_batches_however_often_it_was_restarted(name):
    def end(restarts: bool) -> bytes:
        driver, release = driver_of(frozen(name)), None
        for number, b in enumerate(stream()):
            driver.learn(b)
            snapshot = decided(driver) if number % 3 == 2 else driver.snapshot()
            if snapshot.decision and snapshot.decision.released:
                release = snapshot
            if restarts:
                driver = resumed(frozen(name), snapshot, release)
        return as_bytes(driver.snapshot())

    assert end(restarts=True) == end(restarts=False)


@for_every_head
def test_samples_are_counted_as_learned_without_steps_and_the_body_stays(name):
    driver = driver_of(frozen(name))
    before = tensors_of(driver.snapshot())
    reports = learn(driver, stream())
    assert driver.learner.labels == [str(digit) for digit in range(10)]
    assert [r.figures.learned for r in reports] == [8, 4, 1, 8, 8, 0, 6, 20, 1, 7]
    assert {r.figures.steps for r in reports} == {0}
    assert len(driver.learner.shards[0].memory) == 0
    after = tensors_of(driver.snapshot())
    assert len(after["trainer/model/head.bias"]) == 10
    assert not any(key.startswith("trainer/optimizer/") for key in after)
    backbone = [key for key in before if key.startswith("trainer/model/") and "head" not in key]
    assert all(torch.equal(before[key], after[key]) for key in backbone)


@for_every_head
def test_the_order_of_the_stream_makes_no_difference_to_the_release(name):
    def logits(indices: list[int], size: int) -> np.ndarray:
        driver = driver_of(frozen(name))
        driver.learn(batch(digits_of(range(10), 10), splits=[TEST]))  # the same label map
        for start in range(0, len(indices), size):
            driver.learn(batch(indices[start : start + size], first=position(driver)))
        with torch.inference_mode():
            return rebuilt(candidate_of(driver))(torch.from_numpy(DIGITS_NHWC[-100:])).numpy()

    indices = digits_of(range(10), 200)
    by_class = sorted(indices, key=lambda index: TARGETS[index])
    assert np.allclose(logits(indices, 32), logits(by_class, 7), rtol=0, atol=1e-4)


@for_every_head
@pytest.mark.parametrize("model", MODELS)
def test_whoever_builds_the_released_model_gets_its_predictions(name, model):
    driver = driver_of(frozen(name, model__name=model))
    for start in range(0, 200, 20):
        driver.learn(batch(digits_of(range(10), 20, skip=start // 10), first=position(driver)))
    driver.learn(batch(digits_of(range(10), 60, skip=30), first=position(driver), splits=[TEST, VALIDATION]))
    candidate = candidate_of(driver)
    predictions = predict(rebuilt(candidate), candidate.evaluation["images"].numpy(), CPU)
    assert np.array_equal(predictions, candidate.evaluation["predictions"].numpy())
    assert candidate.test.accuracy is not None
    assert candidate.test.accuracy > 0.2  # of features that nobody trained


@for_every_head
def test_the_release_is_the_head_solved_on_the_networks_features(name):
    indices = digits_of(range(10), 100)
    driver = learned(frozen(name), [batch(indices[start : start + 10], first=start) for start in range(0, 100, 10)])
    network = rebuilt(candidate_of(driver))
    with torch.no_grad():
        x_NCHW = (torch.from_numpy(DIGITS_NHWC[indices]).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
        features = network.body(x_NCHW)
        if name == "random_features":
            projection = network.get_buffer("expansion.projection")
            assert projection.shape == (64, 80)
            features = torch.relu(features @ projection)
    head = SOLVED[name](features.shape[1], CPU)
    head.observe(features, torch.from_numpy(TARGETS[indices].astype(np.int64)), torch.ones(len(indices)))
    weight, bias = head.solve(10)
    assert torch.allclose(network.head.weight, weight, rtol=0, atol=1e-4)
    assert torch.allclose(network.head.bias, bias, rtol=0, atol=1e-4)


def documented(*overrides: str, tmp_path: Path) -> Settings:
    """Return the settings that docs/models.md shows, for digits."""
    (block,) = re.findall(r'```toml\n(\[model\]\n[^`]*head = "ridge"\n)```', DOCUMENTATION.read_text())
    path = tmp_path / "worker.toml"
    path.write_text('run.id = "digits"\ninput.topics = ["images"]\n' + block)
    digits = ["model.name=mlp", "model.height=9", "model.width=9", "model.channels=1", "learning.device=cpu"]
    return load(path, [*digits, "learning.threads=1", *overrides])


def test_a_pretrained_backbone_and_ridge_learn_classes_one_after_the_other(tmp_path):
    pretrained = driver_of(settings(learning__steps_per_batch=3))
    for start in range(40):
        pretrained.learn(batch(digits_of(range(5), 20, skip=4 * start % 100), first=position(pretrained)))
    backbone = tmp_path / "backbone.safetensors"
    save_file(candidate_of(pretrained).parameters, backbone)

    def accuracy(*overrides: str) -> float:
        driver = driver_of(documented(f"model.weights={backbone}", *overrides, tmp_path=tmp_path))
        for digit in range(10):
            for start in range(0, 100, 20):
                driver.learn(batch(digits_of([digit], 20, skip=start), first=position(driver)))
        driver.learn(batch(digits_of(range(10), 700, skip=100), first=position(driver), splits=[TEST]))
        return candidate_of(driver).test.accuracy or 0.0

    assert accuracy() > 0.85
    assert accuracy("model.head=linear", "learning.strategy=finetune") < 0.5


def test_a_young_run_predicts_before_its_first_release():
    driver = driver_of(frozen("ridge"))
    hits = [
        sum(correct for correct, _ in report.figures.prequential.values())
        for report in learn(driver, [batch(digits_of([0, 1], 8, skip=4 * i), first=8 * i) for i in range(4)])
    ]
    assert hits[0] == 4  # all are taken for the first class
    assert min(hits[1:]) > 4


def trained(snapshot: Snapshot) -> bytes:
    kept = {name: t for name, t in tensors_of(snapshot).items() if not name.startswith("prequential/")}
    return tensors.encode(as_arrays(kept))


@for_every_head
def test_features_that_are_not_finite_are_rejected_and_leave_no_trace(name, monkeypatch):
    driver = learned(frozen(name), stream()[:4])
    before = driver.snapshot()
    features = MLP.features
    monkeypatch.setattr(MLP, "features", lambda *args: features(*args) * torch.nan)
    seen = []
    for _ in range(3):
        report = driver.learn(batch(digits_of([0, 1], 2), first=position(driver)))
        assert (report.figures.learned, {r.reason for r in report.rejections}) == (0, {Reason.NON_FINITE_STEP})
        seen.append(driver.learner.diverged)
    assert seen == [False, False, True]
    assert trained(driver.snapshot()) == trained(before)


def test_random_features_are_drawn_from_the_seed():
    torch.manual_seed(3)
    layer = RandomFeatures(5, 7)
    torch.manual_seed(3)
    assert torch.equal(layer.projection, torch.randn(5, 7) / 5**0.5)
    h = torch.randn(2, 5)
    assert torch.equal(layer(h), (h @ layer.projection).clamp(min=0))
    assert not list(layer.parameters())


def test_a_head_that_is_solved_has_a_frozen_backbone(tmp_path):
    path = tmp_path / "worker.toml"
    path.write_text('run.id = "r"\ninput.topics = ["t"]\nmodel.head = "ridge"\n')
    assert load(path).model.frozen
    assert load(path, ["model.freeze=true"]).model.frozen
    assert not load(path, ["model.head=linear"]).model.frozen
    with pytest.raises(UsageError, match=r'head = "ridge" sums features.* remove freeze'):
        load(path, ["model.freeze=false"])


@pytest.mark.parametrize(
    ("name", "setting"), [("prototype", "model__head"), ("random_features", "model__random_features")]
)
def test_a_state_of_another_head_is_refused(name, setting):
    snapshot = learned(frozen(name), stream()[:2]).snapshot()
    with pytest.raises(ValueError, match=f"its {setting.replace('__', '.')} is"):
        resumed(frozen(name, **{setting: "ridge" if setting == "model__head" else 81}), snapshot)


@for_every_head
@pytest.mark.parametrize("before", STRATEGIES)
def test_a_strategy_has_no_effect_on_it_and_may_change(name, before):
    of = partial(settings, model__head=name, model__random_features=80)
    snapshot = learned(of(learning__strategy=before, learning__average_decay=0.9), stream()[:4]).snapshot()
    for after in STRATEGIES:
        driver = resumed(of(learning__strategy=after, learning__average_decay=0), snapshot)
        assert as_bytes(driver.snapshot()) == as_bytes(snapshot)
