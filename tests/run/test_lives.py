"""Notes that a worker's processes leave for later ones, in a real folder. A process without a noted end has died."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from test_batches import Script, record

from stream_learner.checkpoints.store import Store
from stream_learner.config import BatchSettings, Settings
from stream_learner.contract.manifest import encode
from stream_learner.contract.vocabulary import Reason
from stream_learner.errors import FencedError, InputError
from stream_learner.formats.record import Place, Record, RejectError, RetryLaterError, Sample
from stream_learner.learning.parallel import Parallel
from stream_learner.run.batches import OpenBatch, batches
from stream_learner.run.lives import MAX_SET_ASIDE, Lives

A, B, C = Place("images", 0, 7), Place("images", 0, 8), Place("images", 1, 0)
SETTINGS = Settings.model_validate({"run": {"id": "digits"}, "input": {"topics": ["images"]}})


class DiedError(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def life(store: Store, *died_at: Place) -> Lives:
    """A life that died while it was working on these records."""
    lives = Lives(store, SETTINGS)
    with pytest.raises(DiedError), lives.watched(), lives.suspecting([*died_at]):
        raise DiedError
    return lives


def verdict(lives: Lives, place: Place) -> str:
    def decode(_: Record) -> Sample | None:
        return None

    try:
        lives.guarded(decode)(Record(*place[:3], 0, None, b"", [], row=place.row))
    except RejectError as reject:
        return reject.reason
    return "decoded"


def commit(lives: Lives, positions: dict[str, dict[int, int]]) -> None:
    lives.committed(positions)


def test_the_third_death_at_a_record_sets_it_aside(store: Store):
    for _ in range(3):
        life(store, A)
    fourth = Lives(store, SETTINGS)
    assert verdict(fourth, A) == Reason.POISON
    assert verdict(fourth, B) == "decoded"
    assert not fourth.careful


def test_a_single_row_of_a_message_is_set_aside(store: Store):
    row, other = A._replace(row=3), A._replace(row=4)
    for _ in range(3):
        life(store, row)
    fourth = Lives(store, SETTINGS)
    assert [verdict(fourth, place) for place in (row, other, A)] == [Reason.POISON, "decoded", "decoded"]


def test_places_of_an_earlier_version_have_no_rows(store: Store):
    store.replace("digits/lives.json", b'{"lives":1,"suspects":[],"died_at":[],"set_aside":[["images",0,7]]}')
    assert verdict(Lives(store, SETTINGS), A) == Reason.POISON


def test_the_first_life_writes_nothing_about_records(store: Store):
    first = life(store, A)
    assert not first.careful
    assert b'"suspects":[]' in (store.get("digits/lives.json") or b"")
    assert Lives(store, SETTINGS).careful


@pytest.mark.parametrize("deaths", [[A, A, B], [A, B, A, B], [A, A], [A], []])
def test_other_deaths_set_nothing_aside(store: Store, deaths: list[Place]):
    for place in deaths:
        life(store, place)
    assert [verdict(Lives(store, SETTINGS), place) for place in (A, B)] == ["decoded"] * 2


def test_a_kill_between_two_records_blames_none(store: Store):
    for _ in range(5):
        lives = Lives(store, SETTINGS)
        with suppress(DiedError), lives.watched():
            with lives.suspecting([A]):
                pass
            with pytest.raises(RejectError), lives.suspecting([B]):
                raise RejectError(Reason.NO_LABEL, "")
            with pytest.raises(RetryLaterError), lives.suspecting([B]):
                raise RetryLaterError("")
            raise DiedError
    lives = Lives(store, SETTINGS)
    assert (verdict(lives, A), verdict(lives, B), lives.alone) == ("decoded", "decoded", frozenset())


def test_the_records_of_a_batch_are_learned_one_by_one_until_one_is_found(store: Store):
    for _ in range(3):
        assert life(store, A, B, C).alone == frozenset()
    assert life(store, B).alone == {A, B, C}
    assert life(store, B).alone == {B}
    lives = Lives(store, SETTINGS)
    assert (verdict(lives, B), verdict(lives, A), lives.alone) == (Reason.POISON, "decoded", frozenset())


def test_a_record_is_found_even_if_it_is_always_learned_beside_the_same_record_of_another_shard(store: Store):
    def dies(lives: Lives) -> bool:
        """Learn one record of each shard in each step, and die while learning B."""
        scripts = [Script([[record(i, partition=p) for i in range(10)], []]) for p in (0, 1)]
        settings = BatchSettings(size=2)
        shards = [OpenBatch(s, s.decode, {}, settings, s.stop, shards=2, alone=lives.alone) for s in scripts]
        with suppress(DiedError), lives.watched():
            for closed in batches(shards, Parallel(2), settings, scripts[0].stop):
                with lives.suspecting(places := [place for batch in closed for place in batch.places]):
                    if B in places:
                        raise DiedError
            return False
        return True

    for _ in range(5):
        lives = Lives(store, SETTINGS)
        assert verdict(lives, B) == "decoded"
        assert dies(lives)
    assert verdict(Lives(store, SETTINGS), B) == Reason.POISON


def test_progress_clears_what_was_counted(store: Store):
    for _ in range(2):
        life(store, A)
    commit(Lives(store, SETTINGS), {"images": {0: 5}})
    life(store, A)
    assert verdict(Lives(store, SETTINGS), A) == "decoded"


def test_what_is_set_aside_stays_so_until_a_commit_is_past_it(store: Store):
    for _ in range(3):
        life(store, A)
    lives = Lives(store, SETTINGS)
    commit(lives, {"images": {0: 7}})
    assert verdict(lives, A) == Reason.POISON
    lives = Lives(store, SETTINGS)
    with lives.watched():
        pass
    lives = Lives(store, SETTINGS)
    assert (verdict(lives, A), lives.careful) == (Reason.POISON, False)
    commit(lives, {"images": {0: 8}})
    assert verdict(Lives(store, SETTINGS), A) == "decoded"


@pytest.mark.parametrize(
    ("error", "dies"), [(InputError(""), False), (KeyError(), True), (MemoryError(), True), (FencedError(""), True)]
)
def test_an_end_that_the_program_chose_is_no_death(store: Store, error: Exception, dies: bool):
    lives = Lives(store, SETTINGS)
    with pytest.raises(type(error)), lives.watched():
        raise error
    assert Lives(store, SETTINGS).careful == dies


@pytest.mark.parametrize(
    "forged",
    [
        {"lives": "many"},
        {"lives": 3, "died_at": [[A]] * 3},
        {"lives": 3, "set_aside": [("images", 0, -1)]},
        {"lives": 3, "set_aside": [("images", 0, i) for i in range(MAX_SET_ASIDE + 1)]},
        {"lives": 0, "set_aside": [("no input", 0, 7)]},
    ],
    ids=["no count", "three deaths", "no offset", "too many", "no topic"],
)
def test_a_damaged_object_counts_nothing(store: Store, forged: dict[str, Any]):
    store.replace("digits/lives.json", encode(forged))
    lives = Lives(store, SETTINGS)
    assert not lives.careful
    assert verdict(lives, A) == "decoded"


SHARDED = Settings.model_validate({"run": {"id": "digits", "shards": 4}, "input": {"topics": ["images"]}})
OF_LAST_SHARD = Place("images", 3, 7)


def gang(store: Store, ranks: int) -> list[Lives]:
    """The lives of all ranks of a run, which have read the notes."""
    carried = 4 // ranks
    return [Lives(store, SHARDED, range(rank * carried, (rank + 1) * carried)) for rank in range(ranks)]


def last_rank_dies(store: Store, ranks: int) -> None:
    *others, last = gang(store, ranks)
    for lives in others:
        with lives.watched():
            pass
    with pytest.raises(DiedError), last.watched(), last.suspecting([OF_LAST_SHARD]):
        raise DiedError


@pytest.mark.parametrize(("before", "after"), [(1, 2), (1, 4), (2, 1), (2, 4), (4, 1), (4, 2)])
def test_another_number_of_ranks_continues_the_counts(store: Store, before: int, after: int):
    for ranks in (before, before, after):
        last_rank_dies(store, ranks)
    lives = gang(store, after)
    assert [verdict(each, OF_LAST_SHARD) for each in lives] == ["decoded"] * (after - 1) + [Reason.POISON]
    assert not any(each.careful for each in lives)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (1, 4), (2, 1), (2, 4), (4, 1), (4, 2)])
def test_another_number_of_ranks_keeps_what_is_set_aside_until_a_commit_is_past_it(
    store: Store, before: int, after: int
):
    for _ in range(3):
        last_rank_dies(store, before)
    for ranks in (before, after, after):
        for lives in gang(store, ranks):
            with lives.watched():
                pass
    *others, last = gang(store, after)
    assert [verdict(each, OF_LAST_SHARD) for each in (*others, last)] == ["decoded"] * len(others) + [Reason.POISON]
    with last.watched():
        commit(last, {"images": {3: 8}})
    assert store.times("digits/") == {}


def test_many_suspects_cost_no_time(store: Store):
    suspects = [("images", 0, offset) for offset in range(50_000)]
    store.replace("digits/lives.json", encode({"lives": 3, "died_at": [suspects], "suspects": suspects[::-1]}))
    assert len(Lives(store, SETTINGS).alone) == len(suspects)


def test_a_store_that_cannot_be_written_makes_it_careless(store: Store, tmp_path: Path):
    life(store, A)
    lives = Lives(store, SETTINGS)
    (tmp_path / "digits" / "lives.json").unlink()
    (tmp_path / "digits" / "lives.json").mkdir()
    with lives.suspecting([A]):
        assert not lives.careful
