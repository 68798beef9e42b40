"""Semantic Equitable Clustering (ICCV 2025) for PyTorch.  `import secvit` registers the models with timm."""

from secvit import connectors, models
from secvit.adapt import ClusteredAttention, Clustering, patch, unpatch
from secvit.ops import Plan, cluster, sec_attention, sec_pool

__version__ = "0.1.0"
__all__ = [
    "ClusteredAttention",
    "Clustering",
    "Plan",
    "cluster",
    "connectors",
    "models",
    "patch",
    "sec_attention",
    "sec_pool",
    "unpatch",
]
