"""Messages from the other ranks of a run to the publisher of rank 0, which must not take part in collectives."""

import msgspec

from stream_learner.learning.ranks import Board
from stream_learner.publishing.shares import Share


class Shares:
    """The shares of checkpoints that the other ranks of a run write."""

    def __init__(self, ranks: int, board: Board):
        self._ranks = ranks
        self._board = board

    def send(self, rank: int, sequence: int, share: Share) -> None:
        """Send the share of a rank to rank 0."""
        self._board.post(f"{sequence}/{rank}", msgspec.json.encode(share).decode())

    def shares(self, sequence: int) -> list[Share]:
        """Return the shares of all ranks but rank 0, in order. Wait for them."""
        self._board.remove(self._keys(sequence - 1))  # a repeated attempt needs those of this sequence again
        return [msgspec.json.decode(share, type=Share) for share in self._board.read(self._keys(sequence))]

    def _keys(self, sequence: int) -> list[str]:
        return [f"{sequence}/{rank}" for rank in range(1, self._ranks)]
