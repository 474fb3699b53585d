"""Rejected records are in the dead letters exactly as they arrived."""

from feed import MAX_RECORD_BYTES, Draft, bad, digits, good, mixed
from harness import NewRun


def test_every_kind_of_bad_record_to_the_byte(new_run: NewRun) -> None:
    run = new_run(rejects__max_share=1.0, rejects__max_in_a_row=1000, input__tombstones="reject")
    letters = [draft._replace(fate="no_image") if draft.value is None else draft for draft in bad(*digits()[0])]
    run.feed([*good(40), *letters, Draft(None, None, [], "no_image")])
    log = run.finish(run.start())
    assert len(log.dead_letters) == len(letters) + 1
    nulls = [letter for letter in log.dead_letters if letter.key is letter.value is None]
    # Without and with null headers, without headers, and the one that cannot be read.
    assert len(nulls) == 4


def test_many_dead_letters_of_the_largest_size(new_run: NewRun) -> None:
    """Together they are more than the topic takes at once."""
    run = new_run(rejects__max_share=1.0)
    size = MAX_RECORD_BYTES - 100
    large, small = (Draft(None, b"x" * bytes_, [("label", b"1")], "undecodable_image") for bytes_ in (size, 20))
    run.feed([*mixed(500), *[large] * 25, *[small] * 15, *mixed(500)])
    run.finish(run.start())
