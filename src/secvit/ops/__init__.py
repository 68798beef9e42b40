"""The method: scores, one sort, equal clusters, attention inside them.  Imports torch only."""

from secvit.ops.attention import attend_sorted, sec_attention, sec_attention_packed
from secvit.ops.backends import BACKENDS
from secvit.ops.clustering import Clustering, Keys, Projections
from secvit.ops.order import (
    Plan,
    cluster_order,
    inverse_order,
    partition_sizes,
    resolve_num_clusters,
)
from secvit.ops.partitions import (
    PARTITIONS,
    Partition,
    check_partition,
    cluster,
    register_partition,
    shown_name,
    written,
)
from secvit.ops.pooling import pool_plan, sec_pool
from secvit.ops.quality import DEFAULT_QUALITY, QUALITIES, chosen_quality

__all__ = [
    "BACKENDS",
    "DEFAULT_QUALITY",
    "PARTITIONS",
    "QUALITIES",
    "Clustering",
    "Keys",
    "Partition",
    "Plan",
    "Projections",
    "attend_sorted",
    "check_partition",
    "chosen_quality",
    "cluster",
    "cluster_order",
    "inverse_order",
    "partition_sizes",
    "pool_plan",
    "register_partition",
    "resolve_num_clusters",
    "sec_attention",
    "sec_attention_packed",
    "sec_pool",
    "shown_name",
    "written",
]
