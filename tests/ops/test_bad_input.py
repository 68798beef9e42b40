"""DESIGN's first row of bad input: an error that names the value and the remedy."""

import re

import pytest
import torch

import secvit
from secvit.models.rotary import RotaryTable
from secvit.ops import pool_plan, sec_attention, sec_pool

TOKENS = torch.randn(2, 577, 8)
Q = torch.randn(2, 2, 20, 4)
PLAN = secvit.cluster(Q, 4)

CASES = {
    "more clusters than tokens": (
        lambda: secvit.cluster(TOKENS, 600),
        "577 tokens cannot fill 600 clusters; choose num_clusters <= 577",
    ),
    "no clusters": (lambda: secvit.cluster(TOKENS, 0), "num_clusters=0; choose num_clusters >= 1"),
    "negative clusters": (lambda: sec_attention(Q, Q, Q, -3), "num_clusters=-3; choose num_clusters >= 1"),
    "cluster size below one": (lambda: sec_attention(Q, Q, Q, cluster_size=0), "cluster_size=0; choose cluster_size >= 1"),
    "clusters as a float": (lambda: secvit.Clustering(4.0), "num_clusters=4.0; choose a whole number >= 1"),
    "clusters as a word": (lambda: sec_attention(Q, Q, Q, "4"), "num_clusters='4'; choose a whole number >= 1"),
    "cluster size as a float": (
        lambda: secvit.Clustering(cluster_size=9.5),
        "cluster_size=9.5; choose a whole number >= 1",
    ),
    "both": (lambda: secvit.cluster(TOKENS, 4, 98), "give either num_clusters or cluster_size, not both"),
    "neither": (lambda: sec_attention(Q, Q, Q), "give either num_clusters or cluster_size, not neither"),
    "mask of another length": (
        lambda: secvit.cluster(TOKENS, 4, mask=torch.ones(2, 576)),
        "mask of shape (2, 576) for tokens of shape (2, 577, 8); give one of shape (2, 577), True for real tokens",
    ),
    "mask per head": (
        lambda: sec_attention(Q, Q, Q, 4, mask=torch.ones(2, 2, 20)),
        "give one of shape (2, 20), True for real tokens",
    ),
    "mask of pairs in pooling": (
        lambda: sec_pool(Q, Q, Q, 4, mask=torch.ones(20, 20)),
        "mask of shape (20, 20)",
    ),
    "causal": (
        lambda: sec_attention(Q, Q, Q, 4, is_causal=True),
        "SEC cannot be causal: the centre and every token's rank depend on later tokens; use it for",
    ),
    "queries of other tokens": (
        lambda: sec_attention(Q[:, :, :3], Q, Q, 4),
        "do not belong together; give queries, keys and values of the same tokens",
    ),
    "q without heads": (lambda: sec_attention(Q[0], Q, Q, 4), "q, k, v of shapes (2, 20, 4), (2, 2, 20, 4), (2, 2, 20, 4)"),
    "values of another length": (lambda: sec_attention(Q, Q, Q[:, :, :5], 4), "all share B, h and L, q and k share D"),
    "queries of another width": (lambda: sec_attention(Q[..., :3], Q, Q, 4), "do not belong together"),
    "unknown backend": (
        lambda: sec_attention(Q, Q, Q, 4, backend="cudnn"),
        "backend='cudnn'; choose one of auto, sdpa, math, reference",
    ),
    "plan and count": (lambda: sec_attention(Q, Q, Q, 4, plan=PLAN), "give a plan, or num_clusters, or cluster_size"),
    "plan and mask": (
        lambda: sec_attention(Q, Q, Q, plan=PLAN, mask=torch.ones(2, 20)),
        "a plan knows its padding; give mask= to secvit.cluster",
    ),
    "plan and shared": (lambda: sec_attention(Q, Q, Q, plan=PLAN, shared=True), "drop shared="),
    "plan for other tokens": (
        lambda: sec_attention(Q[:, :, :9], Q[:, :, :9], Q[:, :, :9], plan=PLAN),
        "a plan for tokens (2, 2, 20) does not fit keys of shape (2, 2, 9, 4)",
    ),
    "plan for other heads": (
        lambda: sec_attention(*[torch.randn(2, 3, 20, 4)] * 3, plan=PLAN),
        "a plan for tokens (2, 2, 20) does not fit keys of shape (2, 3, 20, 4)",
    ),
    "reference of a plan": (lambda: sec_attention(Q, Q, Q, plan=PLAN, backend="reference"), "drop plan="),
    "one axis": (lambda: secvit.cluster(torch.randn(5), 2), "tokens of shape (5,); give (B, L, C) or (B, h, L, D)"),
    "unknown partition": (lambda: secvit.cluster(TOKENS, 4, partition="dbscan"), "partition='dbscan'; choose one of sec, window"),
    "unknown centre": (lambda: secvit.cluster(TOKENS, 4, centre="median"), "centre='median'; choose 'mean', 'cls', 'pc1'"),
    "window without a grid": (
        lambda: secvit.cluster(TOKENS, 4, partition="window"),
        "give grid=(H, W)",
    ),
    "window of another grid": (
        lambda: secvit.cluster(TOKENS, 4, partition="window", grid=(24, 24)),
        "577 tokens are no 24 x 24 grid; give grid=(H, W) of the tokens",
    ),
    "balanced k-means under a mask": (
        lambda: secvit.cluster(TOKENS, 4, partition="balanced_kmeans", mask=torch.ones(2, 577)),
        "balanced k-means takes no mask; choose another partition",
    ),
    "more outputs than tokens": (
        lambda: sec_pool(Q, Q, Q, 21),
        "20 tokens cannot give 21; choose 1 <= num_tokens <= 20",
    ),
    "no outputs": (lambda: pool_plan(TOKENS, 0), "577 tokens cannot give 0; choose 1 <= num_tokens <= 577"),
    "unknown arrangement": (
        lambda: sec_pool(Q, Q, Q, 4, arrangement="zigzag"),
        "arrangement='zigzag'; choose 'interleaved' or 'sequential'",
    ),
    "pooling other queries": (lambda: sec_pool(Q[:, :, :9], Q, Q, 4), "give queries, keys and values of the same tokens"),
    "pooling by a plan of another count": (
        lambda: sec_pool(Q, Q, Q, 5, plan=pool_plan(Q, 4)),
        "a plan for 4 tokens, num_tokens=5",
    ),
    "rotary positions in 6 channels": (lambda: RotaryTable(6), "6 channels per head; 2-D rotary positions need a multiple of 4"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_error_names_the_value_and_the_remedy(case):
    call, message = CASES[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
