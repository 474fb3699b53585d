import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_learner.contract.vocabulary import Split
from stream_learner.formats.splits import assign, group

RECORDS = 20_000
CHI_SQUARE_2_DOF = 13.8  # exceeded by one fair draw in a thousand


@pytest.mark.parametrize(("validation", "test"), [(0.05, 0.05), (0.1, 0.2), (0.01, 0.5)])
def test_shares_are_those_asked_for(validation, test):
    counts = dict.fromkeys(Split, 0)
    for i in range(RECORDS):
        counts[assign(f"record {i}".encode(), validation, test)] += 1
    shares = {Split.VALIDATION: validation, Split.TEST: test, Split.TRAIN: 1 - validation - test}
    chi_square = sum((counts[s] - RECORDS * share) ** 2 / (RECORDS * share) for s, share in shares.items())
    assert chi_square < CHI_SQUARE_2_DOF


def test_splits_never_change_from_version_to_version():
    # A changed hash would put samples that were learned into the test set.
    splits = [assign(f"{i}".encode(), 0.3, 0.3)[:2] for i in range(12)]
    assert splits == ["va", "te", "va", "te", "va", "va", "tr", "tr", "te", "te", "te", "te"]


def test_groups_never_change_from_version_to_version():
    assert [group(b""), group(b"patient")] == [2649525323220522685, 8003844133041966009]


@given(st.binary())
def test_a_share_of_nothing_gets_nothing(identity):
    assert assign(identity, 0, 0) is Split.TRAIN
    assert assign(identity, 0, 0.5) is not Split.VALIDATION
    assert assign(identity, 0.5, 0) is not Split.TEST
    assert assign(identity, 0.2, 0.3) is assign(bytes(identity), 0.2, 0.3)
