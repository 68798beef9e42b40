"""Eqs. 1 to 4 on a GPU: the order of tokens, attention in clusters, and to near and far ones.

Importing this package needs triton and registers `torch.ops.secvit`'s operators; `secvit.ops.backends` does so.
"""

from secvit.ops.triton.attention import INTERPRETED, attend_clusters, attend_clusters_packed
from secvit.ops.triton.near_far import attend_near_far
from secvit.ops.triton.order import order_tokens

__all__ = ["INTERPRETED", "attend_clusters", "attend_clusters_packed", "attend_near_far", "order_tokens"]
