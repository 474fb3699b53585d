import pytest
from digit_stream import settings

from stream_learner.contract.vocabulary import Label, Reason
from stream_learner.formats.record import RejectError
from stream_learner.learning import classes
from stream_learner.learning.classes import MAX_PENDING, Classes, Pending, check_room


def restored(found: Classes, **overrides) -> Classes:
    """Restore classes as a restart with other settings does."""
    made = Classes(settings(**overrides))
    made.load_state_dict(found.state_dict())
    return made


def known(*labels: Label, **overrides) -> Classes:
    found = Classes(settings(**overrides))
    for label in labels:
        found.admit(label)
    return found


def reason(found: Classes, label: Label) -> Reason | None:
    """Return why a record's label is no class, or None if it is one."""
    try:
        found.admit(label)
    except RejectError as reject:
        return reject.reason
    return None


def test_labels_get_their_indices_in_the_order_of_arrival():
    found = known("cat", 7, "7")
    assert [found.admit(label) for label in (7, "dog", "cat", "7")] == [1, 3, 0, 2]
    assert found.labels == ["cat", 7, "7", "dog"]


def test_an_alias_retires_and_its_label_takes_over():
    found = restored(known("cat", "kitty", "dog"), labels__aliases={"kitty": "cat", "dog": "hound"})
    assert found.retire() == [(1, 0), (2, 3)]
    assert found.labels == ["cat", "kitty", "dog", "hound"]
    assert found.retire() == []
    assert restored(found, labels__aliases={"kitty": "cat", "dog": "hound"}).retire() == []
    assert found.in_use == 2


def test_aliases_of_one_new_label_share_an_index():
    found = restored(known("a", "b"), labels__aliases={"a": "c", "b": "c"})
    assert found.retire() == [(0, 2), (1, 2)]


def test_a_label_that_is_not_allowed_retires_with_nobody_in_its_place():
    found = restored(known("cat", 7, "dog"), labels__allowed=["dog"])
    assert found.retire() == [(0, None), (1, None)]


def test_a_label_that_is_allowed_again_gets_its_index_back_with_its_next_record():
    found = restored(known("cat", "dog"), labels__allowed=["dog"])
    found.retire()
    again = restored(found)
    assert again.retire() == []
    assert again.retired == {0: None}
    assert again.admit("cat") == 0
    assert again.retired == {}
    assert again.labels == ["cat", "dog"]


def test_a_label_that_comes_back_may_be_rare_and_needs_room():
    found = restored(known("cat", "dog"), labels__allowed=["dog"])
    found.retire()
    rare = restored(found, labels__min_records=2)
    assert [reason(rare, "cat"), reason(rare, "cat")] == [Reason.RARE_LABEL, None]
    full = restored(found, model__max_classes=1)
    assert reason(full, "cat") is Reason.TOO_MANY_CLASSES


def test_an_alias_for_a_retired_label_brings_it_back():
    found = restored(known("cat", "kitty"), labels__allowed=["kitty"])
    found.retire()
    back = restored(found, labels__aliases={"kitty": "cat"})
    assert back.retire() == [(1, 0)]
    assert back.retired == {1: 0}


def test_two_labels_may_change_places_over_two_starts():
    found = restored(known("a", "b"), labels__aliases={"a": "b"})
    found.retire()
    other = restored(found, labels__aliases={"b": "a"})
    assert other.retire() == [(1, 0)]
    assert other.retired == {1: 0}


def test_retired_classes_leave_room_for_others():
    found = restored(known("a", "b", model__max_classes=2), labels__aliases={"b": "a"}, model__max_classes=2)
    found.retire()
    assert found.admit("c") == 2
    assert reason(found, "d") is Reason.TOO_MANY_CLASSES
    renamed = restored(known("a", "b", model__max_classes=2), labels__aliases={"b": "c"}, model__max_classes=2)
    renamed.retire()
    assert renamed.labels == ["a", "b", "c"]


def test_a_new_label_becomes_a_class_with_its_nth_record():
    found = Classes(settings(labels__min_records=3))
    seen = []
    for _ in range(4):
        seen.append(reason(found, "cat"))
        found = restored(found, labels__min_records=3)
    assert seen == [Reason.RARE_LABEL, Reason.RARE_LABEL, None, None]
    assert found.labels == ["cat"]
    assert found.state_dict()["pending"] == []


def test_a_target_of_an_alias_is_a_class_at_once():
    found = restored(known("kitty"), labels__min_records=3, labels__aliases={"kitty": "cat"})
    found.retire()
    assert found.admit("cat") == 1


def test_a_flood_of_random_labels_makes_no_class_and_takes_no_room():
    found = Classes(settings(labels__min_records=3))
    records = 0
    for i in range(20 * MAX_PENDING):
        assert reason(found, f"random {i}") is Reason.RARE_LABEL
        if i % 500 == 0:  # four times as often as is sure to be found
            records += 1
            if reason(found, "cat") is None:
                break
    assert found.labels == ["cat"]
    assert records < 10
    assert len(found.state_dict()["pending"]) <= MAX_PENDING


def test_counts_are_never_too_high():
    pending = Pending()
    for i in range(3 * MAX_PENDING):
        assert pending.count(i) == 1
    assert len(pending.state_dict()) <= MAX_PENDING


def test_new_names_must_fit_in_a_manifest(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(classes, "MAX_LABELS_BYTES", len('"a","b","c",'))
    document = known("a", "b").state_dict()
    check_room(document, settings(labels__aliases={"b": "c"}))
    with pytest.raises(ValueError, match="take more than 12 bytes"):
        check_room(document, settings(labels__aliases={"b": "cc"}))


@pytest.mark.parametrize(
    ("overrides", "fits"),
    [
        ({}, False),
        ({"labels__aliases": {"a": "b"}}, True),
        ({"labels__aliases": {"a": "d"}}, False),
        ({"labels__allowed": ["b", "c"]}, True),
    ],
)
def test_room_is_checked_after_retiring(overrides, fits):
    document = known("a", "b", "c").state_dict()
    given = settings(model__max_classes=2, **overrides)
    if fits:
        check_room(document, given)
    else:
        with pytest.raises(ValueError, match=r"it has 3 classes, more than model\.max_classes = 2"):
            check_room(document, given)
    assert document == known("a", "b", "c").state_dict()
