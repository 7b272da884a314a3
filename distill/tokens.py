"""Learns a tokenizer's merges from training texts, and says what token ids are as features."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

from apps.runtime.tokenizer import FIRST_BYTE, FIRST_MERGE, merged, pieces

Pair = tuple[int, int]
_FEWEST = 2  # a pair seen once is no pattern


class TokenShape(tuple[int, ...]):
    """The feature shape ``(max_tokens,)`` of token ids: whole numbers below ``vocabulary``.

    Attributes:
        padding: the id that fills up.
        identity: of a language model's own tokenizer, a hash of all but ``max_tokens``; empty for one fitted here.
    """

    vocabulary: int
    padding: int
    identity: str

    def __new__(cls, max_tokens: int, vocabulary: int, padding: int = 0, identity: str = "") -> TokenShape:
        shape = super().__new__(cls, (max_tokens,))
        shape.vocabulary, shape.padding, shape.identity = vocabulary, padding, identity
        return shape

    def __getnewargs__(self) -> tuple[object, ...]:
        """What a copy is made from."""
        return (self[0], self.vocabulary, self.padding, self.identity)


def learn_merges(texts: Iterable[str], vocabulary: int, *, lower_case: bool) -> tuple[Pair, ...]:
    """Byte-pair merges, the most frequent pair first (Sennrich and others, ACL 2016, algorithm 1).

    Of pairs of one frequency the one with the lower ids comes first, so that equal texts give equal merges.

    Args:
        vocabulary: most ids that the tokenizer may have; fewer where no pair is left that occurs twice.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(piece for piece in pieces(str(text), lower_case=lower_case) if isinstance(piece, str))
    return _Merger(counts).learn(vocabulary - FIRST_MERGE)


class _Merger:
    """Pieces as ids, with how often each pair occurs in them and where: a merge looks at those pieces alone."""

    def __init__(self, counts: Counter[str]) -> None:
        self._pieces: list[Sequence[int]] = [[FIRST_BYTE + byte for byte in piece.encode("utf-8")] for piece in counts]
        self._counts = list(counts.values())
        self._totals: Counter[Pair] = Counter()
        self._where: defaultdict[Pair, set[int]] = defaultdict(set)
        for number in range(len(self._pieces)):
            self._count(number, 1)
        self._heap = [(-total, pair) for pair, total in self._totals.items()]
        heapq.heapify(self._heap)

    def learn(self, wanted: int) -> tuple[Pair, ...]:
        """Up to ``wanted`` merges."""
        merges: list[Pair] = []
        while self._heap and len(merges) < wanted:
            negative, pair = heapq.heappop(self._heap)
            if -negative != self._totals[pair]:
                continue  # the count has changed since; the pair is in the heap again with the new one
            if -negative < _FEWEST:
                break
            self._merge(pair, FIRST_MERGE + len(merges))
            merges.append(pair)
        return tuple(merges)

    def _merge(self, pair: Pair, new: int) -> None:
        touched: set[Pair] = set()
        for number in self._where.pop(pair):
            touched |= self._count(number, -1)
            self._pieces[number] = merged(self._pieces[number], pair, new)
            touched |= self._count(number, 1)
        for other in touched - {pair}:
            heapq.heappush(self._heap, (-self._totals[other], other))

    def _count(self, number: int, sign: int) -> set[Pair]:
        """Adds the pairs of one piece to the totals, or takes them away; returns them."""
        pairs = list(pairwise(self._pieces[number]))
        for pair in pairs:
            self._totals[pair] += sign * self._counts[number]
            if sign > 0:
                self._where[pair].add(number)
        return set(pairs)
