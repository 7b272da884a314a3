"""Retrieval across modalities: how well embeddings of one find those of another that show the same class."""

from __future__ import annotations

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
    towards = functional.normalize(gallery.double(), dim=1).T
    rank = torch.arange(1, len(gallery) + 1, dtype=torch.float64)
    found = []
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        near = functional.normalize(queries[start : start + _QUERIES_AT_ONCE].double(), dim=1) @ towards
        order = near.argsort(dim=1, descending=True, stable=True)
        relevant = (held[order] == asked[start : start + _QUERIES_AT_ONCE, None]).double()
        count = relevant.sum(dim=1)
        precision = (relevant * relevant.cumsum(dim=1) / rank).sum(dim=1) / count.clamp_min(1)
        found.append(precision[count > 0])
    every = torch.cat(found)
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
