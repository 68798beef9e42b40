"""You learn to see which parts of an image a network puts together, stage by stage.

    python 01_cluster_an_image.py [photo.jpg]

Takes a photograph (scikit-learn's china.jpg unless you name one), asks a SECViT for its clusters,
prints a table of them and draws a picture.  The weights here are random: a name like "secvit_nano.clothing10", or
`checkpoint=`, gives trained ones.  From a terminal: secvit cluster secvit_tiny photo.jpg -o clusters.png
"""

import sys

from PIL import Image
from sklearn.datasets import load_sample_image

from secvit.draw.picture import save
from secvit.images import read_image
from secvit.models.saved import load_model
from secvit.vis import cluster_maps, draw_clusters
from secvit.vis.clusters import normalised

if len(sys.argv) > 1:
    photo = read_image(sys.argv[1])
else:
    photo = Image.fromarray(load_sample_image("china.jpg"))
photo.thumbnail((448, 448))

model = load_model("secvit_tiny")
maps = cluster_maps(model, normalised(photo, model), head=0)

print("stage  grid      M   tokens in each cluster")
for found in maps:
    height, width = found.labels.shape  # one label per token: 0 = least like the mean key
    low, high = int(found.sizes.min()), int(found.sizes.max())
    print(f"{found.stage + 1:5}  {width:3} x{height:3} {found.num_clusters:4}   {low} to {high}")

figure = draw_clusters(photo, maps, title="Clusters of an untrained SECViT-T")
print("wrote", save(figure, "clusters.png"))
