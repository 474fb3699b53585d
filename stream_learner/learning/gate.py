"""The decision whether to release a candidate. `releases.py` also refuses parameters that are not finite."""

from typing import Any

import numpy as np

from stream_learner.config import ReleaseSettings
from stream_learner.contract.manifest import Decision
from stream_learner.contract.vocabulary import Label
from stream_learner.learning.evaluation import score

LEVEL = 0.05  # significance level of the one-sided test
DRAWS = 10_000
ROUNDING = 1e-9  # tolerance for rounding errors in sums of recalls


def decide(
    candidate: np.ndarray, last: np.ndarray | None, targets: np.ndarray, known: int, settings: ReleaseSettings
) -> Decision:
    """Compare the candidate with the last release by mean recall on the current validation samples.

    `candidate` and `last` are the class indices that the two models predict. `targets` are the correct indices, int64
    [N]. `last` is None before the first release. The last release knows only the first `known` classes, so it is wrong
    on all samples of other classes.

    Both models are scored on the same samples. The score from the time of the last release is not used. It may come
    from fewer classes, which is an easier problem. After new classes arrive, candidates might never reach that score.
    """
    classes: list[Label] = list(range(int(targets.max(initial=-1)) + 1))
    new = score(candidate, targets, classes).mean_recall
    figures: dict[str, Any] = {"candidate": new, "last": None, "samples": len(targets)}
    if last is None:
        return Decision(released=True, abstained=True, reason="nothing was released before", **figures)

    old = score(last, targets, classes).mean_recall
    right, was_right = candidate == targets, last == targets
    held, total_C = np.unique(targets, return_counts=True)
    gained_C = np.bincount(targets[right & ~was_right], minlength=len(classes))[held]
    lost_C = np.bincount(targets[was_right & ~right], minlength=len(classes))[held]
    drops_C = ((lost_C - gained_C) / total_C)[held < known]
    drop = float(drops_C.mean()) if len(drops_C) else None
    figures |= {
        "last": old,
        "both_right": int((right & was_right).sum()),
        "only_last_right": int(lost_C.sum()),
        "only_candidate_right": int(gained_C.sum()),
        "negative_flip_rate": float((was_right & ~right).mean()) if len(targets) else None,
        "old_class_drop": drop,
    }
    if new is None or old is None or len(targets) < settings.min_held_out:
        reason = f"{len(targets)} validation samples are too few to compare"
        return Decision(released=True, abstained=True, reason=reason, **figures)

    if settings.rule == "max_drop":
        released = new >= old - settings.max_drop - ROUNDING
        worse = not released
        reason = f"mean recall {new:.4f} {'reaches' if released else 'is below'} {old:.4f} - {settings.max_drop}"
    else:
        better = settings.rule == "better"
        p_worse = p_value(gained_C, lost_C, total_C)
        worse = p_worse <= LEVEL
        p = p_value(lost_C, gained_C, total_C) if better else p_worse
        significant = p <= LEVEL
        released = significant == better
        reason = (
            f"mean recall {new:.4f} is {'' if significant else 'not '}significantly "
            f"{'better' if better else 'worse'} than {old:.4f}, p = {p:.4f}"
        )
        figures["p_value"] = p
    limit = settings.max_old_class_drop
    if limit is not None and drop is not None and drop > limit + ROUNDING:
        worse = True
        if released:
            released = False
            reason = f"mean recall over the classes that the last release knows fell by {drop:.4f}, more than {limit}"
    return Decision(released=released, worse=worse, abstained=False, reason=reason, **figures)


def p_value(gained_C: np.ndarray, lost_C: np.ndarray, total_C: np.ndarray) -> float:
    """Return the p-value of the one-sided test that the first model has a lower mean recall than the second model.

    The arrays hold numbers of samples by class. `gained_C`: only the first model is right. `lost_C`: only the second
    model is right. `total_C`: all samples.

    This is McNemar's exact test (McNemar 1947, Dietterich 1998) with another statistic. The test considers the samples
    that only one model predicts right. If both models are equally good, each of these samples favours either model with
    probability 1/2. The statistic is the difference of the mean recalls, in which a sample of a rare class weighs more.
    With classes of equal size, both tests are the same. A bootstrap would find significance in three samples of a rare
    class: if all samples of a small class changed alike, the bootstrap sees no variance.

    The probability is estimated from random draws, and the observed outcome counts as one draw (Phipson and Smyth
    2010). The seed is fixed, so that the same predictions give the same decision.
    """
    rng = np.random.default_rng(0)
    differing_C = gained_C + lost_C
    drawn = np.zeros(DRAWS)
    for differing, total in zip(differing_C, total_C, strict=True):
        drawn += (2 * rng.binomial(differing, 0.5, DRAWS) - differing) / total
    observed = float(((gained_C - lost_C) / total_C).sum())
    return (1 + int((drawn <= observed + ROUNDING).sum())) / (1 + DRAWS)
