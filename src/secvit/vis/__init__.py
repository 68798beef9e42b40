"""Pictures of clusters: which tokens a network puts together, and why."""

from secvit.extras import needs

with needs("secvit.vis", "matplotlib", "vis"):
    import matplotlib  # noqa: F401

from secvit.vis.attention import TokenAttention, draw_attention, token_attention
from secvit.vis.clusters import ClusterMap, cluster_maps, draw_clusters
from secvit.vis.connectors import draw_merged, merge_photo, picture_of
from secvit.vis.gradcam import CamMap, grad_cam
from secvit.vis.metrics import cluster_metrics
from secvit.vis.pages import compare_partitions, draw_page, draw_partitions
from secvit.vis.record import record_keys
from secvit.vis.view import View, cluster_page, cluster_photo, cluster_photos, show_clusters

__all__ = [
    "CamMap",
    "ClusterMap",
    "TokenAttention",
    "View",
    "cluster_maps",
    "cluster_metrics",
    "cluster_page",
    "cluster_photo",
    "cluster_photos",
    "compare_partitions",
    "draw_attention",
    "draw_clusters",
    "draw_merged",
    "draw_page",
    "draw_partitions",
    "grad_cam",
    "merge_photo",
    "picture_of",
    "record_keys",
    "show_clusters",
    "token_attention",
]
