"""The place of a process in its gang."""

import pytest

from stream_learner.errors import UsageError
from stream_learner.run.gang import Rank, check_ranks

ADDRESS = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, Rank()),
        ({"RANK": "0", "WORLD_SIZE": "1"}, Rank()),
        (ADDRESS | {"RANK": "3", "WORLD_SIZE": "4"}, Rank(3, 4, 0)),
        (ADDRESS | {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, Rank(3, 4, 1)),
    ],
)
def test_the_environment_says_which_rank_a_process_is(environment: dict[str, str], rank: Rank):
    assert Rank.from_environment(environment) == rank


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RANK": "0"}, "of RANK and WORLD_SIZE in the environment, one is missing"),
        ({"RANK": "a", "WORLD_SIZE": "2"}, "is not a number"),
        (ADDRESS | {"RANK": "2", "WORLD_SIZE": "2"}, "RANK = 2 in the environment is not from 0 to WORLD_SIZE - 1 = 1"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "1"}, "MASTER_ADDR or MASTER_PORT is not"),
    ],
)
def test_an_environment_of_no_rank_is_refused(environment: dict[str, str], message: str):
    with pytest.raises(UsageError, match=message):
        Rank.from_environment(environment)


def test_ranks_carry_equal_numbers_of_shards():
    check_ranks(2, 4)
    with pytest.raises(UsageError, match=r"3 ranks cannot share run\.shards = 4 equally"):
        check_ranks(3, 4)
    with pytest.raises(UsageError, match=r"8 ranks cannot share run\.shards = 4 equally"):
        check_ranks(8, 4)
