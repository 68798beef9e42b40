"""Eqs. 1 to 4 on a GPU: the order of tokens, and attention in clusters.

Importing this package needs triton and registers `torch.ops.secvit`'s operators; `secvit.ops.backends` does so.
"""

from secvit.ops.triton.attention import INTERPRETED, attend_clusters, attend_clusters_packed
from secvit.ops.triton.order import order_tokens

__all__ = ["INTERPRETED", "attend_clusters", "attend_clusters_packed", "order_tokens"]
