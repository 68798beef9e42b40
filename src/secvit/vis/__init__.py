"""Pictures: which tokens a network puts together, what a detector finds, and how a training went."""

from secvit.vis.clusters import ClusterMap, cluster_maps, cluster_photo, draw_clusters
from secvit.vis.curves import draw_curves
from secvit.vis.detections import detect_photos, draw_detections
from secvit.vis.patching import draw_patch_report

__all__ = [
    "ClusterMap",
    "cluster_maps",
    "cluster_photo",
    "detect_photos",
    "draw_clusters",
    "draw_curves",
    "draw_detections",
    "draw_patch_report",
]
