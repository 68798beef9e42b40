"""You learn to look inside a network: what speaks for its answer, and what its clusters are worth.

    python 08_look_inside.py [photo.jpg]

Grad-CAM beside the clusters of each stage (Figure 4 of the paper), window, k-means and SEC on the same keys with
sizes and times (Figure 1), and numbers for what the eye may imagine.  The same from a terminal:
    secvit cluster photo.jpg --gradcam --compare --metrics
"""

import sys

from PIL import Image
from sklearn.datasets import load_sample_image

from secvit.draw.picture import save
from secvit.images import read_image
from secvit.models.saved import load_model
from secvit.vis import (
    cluster_maps,
    cluster_metrics,
    compare_partitions,
    draw_page,
    draw_partitions,
    grad_cam,
    record_keys,
)
from secvit.vis.clusters import normalised, sized
from secvit.vis.metrics import metrics_table
from secvit.vis.pages import Row

photo = read_image(sys.argv[1]) if len(sys.argv) > 1 else Image.fromarray(load_sample_image("flower.jpg"))
photo = sized(photo, 224)
model = load_model("secvit_nano.clothing10")  # weights that come along: ten kinds of clothes
image = normalised(photo, model)

# which places speak for the likeliest class, stage by stage; any block, any class, frozen weights too
cams = grad_cam(model, image)
print(f"{cams[-1].name}: {cams[-1].share:.2f}")

# one forward pass gives the keys of every stage; they can be cut in other ways than the network does
maps = cluster_maps(model, image, num_clusters=8)
print("wrote", save(draw_page([Row(photo, maps, cams)], "Clusters and Grad-CAM"), "look.png"))

keys = record_keys(model, image, stages=[0])[0]
compared = compare_partitions(keys)
for one in compared:
    print(" ".join(str(one).split("\n")))
print("wrote", save(draw_partitions(photo, compared, "Three partitions of the same keys"), "partitions.png"))

# how near to each other a cluster's tokens lie, and how many pairs stay together when the photo changes a little;
# with mask=, the class of each pixel, also whether clusters follow objects
rows = cluster_metrics(model, photo, stages=[0], partitions=["sec", "window", "kmeans", "random"])
print(metrics_table(rows))
