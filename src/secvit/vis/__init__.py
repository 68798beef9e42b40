"""Pictures: which tokens a network puts together, and how a training went."""

from secvit.vis.clusters import ClusterMap, cluster_maps, cluster_photo, draw_clusters
from secvit.vis.curves import draw_curves
from secvit.vis.patching import draw_patch_report

__all__ = ["ClusterMap", "cluster_maps", "cluster_photo", "draw_clusters", "draw_curves", "draw_patch_report"]
