"""Retrieval across modalities: how well embeddings of one find those of another that show the same class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

_QUERIES_AT_ONCE = 256


def mean_average_precision(queries: Tensor, gallery: Tensor, asked: Tensor, held: Tensor) -> float:
    """Mean over queries of the average precision of the whole gallery, ranked by cosine.

    What has the query's class is relevant; the average precision is the mean of precision@rank over the relevant items
    (the usual definition of the audio-visual retrieval literature). Of equally near items the earlier one comes first.
    A query without a relevant item is left out.

    Args:
        queries, gallery: ``(Q, d)`` and ``(G, d)`` embeddings. asked, held: ``(Q,)`` and ``(G,)`` classes.
    """
    rank = torch.arange(1, len(gallery) + 1, dtype=torch.float64)
    blocks = _ranked(queries, gallery, asked, held)
    found = [(hits * hits.cumsum(dim=1) / rank).sum(dim=1) / hits.sum(dim=1) for hits in blocks]
    return _mean(found)


def recall_at(queries: Tensor, gallery: Tensor, asked: Tensor, held: Tensor, first: int) -> float:
    """Share of the queries that have an item of their class among the ``first`` nearest; R@first.

    Arguments and ranking are those of ``mean_average_precision``.
    """
    return _mean([hits[:, :first].amax(dim=1) for hits in _ranked(queries, gallery, asked, held)])


def _ranked(queries: Tensor, gallery: Tensor, asked: Tensor, held: Tensor) -> Iterator[Tensor]:
    """``(queries, G)`` 1 where an item is relevant, the nearest first, for some queries at a time."""
    towards = functional.normalize(gallery.double(), dim=1).T
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        near = functional.normalize(queries[start : start + _QUERIES_AT_ONCE].double(), dim=1) @ towards
        order = near.argsort(dim=1, descending=True, stable=True)
        hits = (held[order] == asked[start : start + _QUERIES_AT_ONCE, None]).double()
        yield hits[hits.any(dim=1)]


def _mean(found: Sequence[Tensor]) -> float:
    every = torch.cat([*found, torch.zeros(0, dtype=torch.float64)])
    return float(every.mean()) if len(every) else 0.0


def hardest_triplets(one: Tensor, other: Tensor, target: Tensor, margin: float) -> Tensor:
    """Cross-modal triplet loss with the hardest pairs of a batch, both ways; a scalar.

    For each sample of one modality, ``relu(d(farthest of its class) - d(nearest of another) + margin)`` in the other
    one, ``d`` being the distance of unit vectors, in [0, 2] (Hermans and others, arXiv 1703.07737, across modalities).
    Where a batch holds one class alone there is no negative, and the sample counts as 0.

    Args:
        one, other: ``(B, d)`` embeddings of the same samples. target: ``(B,)`` classes.
    """
    distance = torch.cdist(functional.normalize(one.float(), dim=1), functional.normalize(other.float(), dim=1))
    same = target[:, None] == target
    losses = []
    for towards, alike in ((distance, same), (distance.T, same.T)):
        farthest = towards.masked_fill(~alike, -torch.inf).amax(dim=1)
        nearest = towards.masked_fill(alike, torch.inf).amin(dim=1)
        losses.append(functional.relu(farthest - nearest + margin).mean())
    return torch.stack(losses).mean()
