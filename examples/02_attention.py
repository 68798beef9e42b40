"""You learn the operation itself: attention inside clusters of similar tokens, for any length.

    python 02_attention.py

One sort by the cosine to the mean key, equal cuts, attention in each cluster: no iterations, no
padding, no state.  The partition is an object, `Plan`, that you can look at and use for other
things; `sec_pool` makes fewer tokens out of many.
"""

import torch

import secvit

torch.manual_seed(0)
B, h, L, D = 2, 4, 577, 32  # 577 is prime: nothing divides it
q, k, v = torch.randn(3, B, h, L, D, requires_grad=True)

# a number of clusters, or a size that no cluster exceeds (cost grows with L, not with its square)
out = secvit.sec_attention(q, k, v, num_clusters=8)
same_cost_at_any_length = secvit.sec_attention(q, k, v, cluster_size=98)
out.sum().backward()
print("attention", tuple(q.shape), "->", tuple(out.shape), same_cost_at_any_length.shape == out.shape)

# with one cluster it is ordinary attention
full = torch.nn.functional.scaled_dot_product_attention(q, k, v)
one = secvit.sec_attention(q, k, v, num_clusters=1)
print("M = 1 is full attention:", torch.allclose(one, full, atol=1e-5))

# the partition: one per head here, because k has heads; give (B, L, C) for one per image
plan = secvit.cluster(k, num_clusters=8)
print("sizes", plan.sizes[0, 0].tolist(), "labels", tuple(plan.labels.shape))
back = plan.put_back(plan.take(v))  # sorted by cluster, and undone
print("put_back undoes take:", torch.equal(back, v))
print("mean token of each cluster", tuple(plan.merge(v).shape))

# any partition can be attended in: here square windows, the usual rival, of a 24 x 24 grid
windows = secvit.cluster(k[:, :, 1:], num_clusters=16, partition="window", grid=(24, 24))
local = secvit.sec_attention(q[:, :, 1:], k[:, :, 1:], v[:, :, 1:], plan=windows)
print("windows", tuple(local.shape))

# padding: True for real tokens; padded ones enter no centre and come out as zeros
mask = torch.arange(L) < torch.tensor([[577], [300]])
padded = secvit.sec_attention(q, k, v, num_clusters=8, mask=mask)
print("padded tokens are zero:", bool((padded[1, :, 300:] == 0).all()))

# fewer tokens, for a language model: 577 -> 144, each the attention of a group's mean query
print("pooled", tuple(secvit.sec_pool(q, k, v, num_tokens=144).shape))
