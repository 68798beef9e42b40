"""Make the pictures of docs/gallery.md, small ones, in docs/images.

python docs/gallery.py PHOTOS --weights FILE

PHOTOS is a folder with the photos that SIX and the lines below name, FILE has weights for VIT.
"""

import argparse
import io
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from secvit.images import read_image
from secvit.vis import (
    View,
    cluster_maps,
    draw_attention,
    draw_clusters,
    draw_page,
    grad_cam,
    record_keys,
    token_attention,
)  # fmt: skip
from secvit.vis.clusters import normalised, sized
from secvit.vis.pages import Row
from secvit.vis.view import Recorded, animation_of, clusters_of, partitions_of

IMAGES = Path(__file__).parent / "images"
LARGEST = 300_000  # bytes
WIDEST = 1500  # px
SIX = [
    "coco_000000174375.jpg", "coco_000000107438.jpg", "coco_000000516008.jpg",
    "coco_000000364082.jpg", "coco_000000196393.jpg", "china.jpg",
]  # fmt: skip
PAGE = View("secvit_nano.clothing10", size=320, num_clusters=8)
VIT = "vit_small_patch14_dinov2"
CALLED = "ViT-S/14 (DINOv2 architecture) of a saliency model, 1,369 tokens"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--weights", type=Path, help=f"for timm's {VIT}; without it the tree's pictures are left out")
    parser.add_argument("--only", nargs="+", help="names of pictures; else all of them")
    asked = parser.parse_args()
    photos = asked.photos
    tennis, coffee = photos / SIX[0], photos / "coffee.png"
    pictures: dict[str, Callable[[], Figure | bytes]] = {
        "gallery_figure4.jpg": lambda: six(photos),
        "gallery_figure1.jpg": lambda: drawn(partitions_of, tennis, View(size=320)),
        "gallery_stages.jpg": lambda: drawn(clusters_of, coffee, View(size=320, num_clusters=4), gradcam=True),
        "gallery_outlined.jpg": lambda: drawn(
            clusters_of, coffee, View("secvit_tiny", size=448, stages=[1, 2], style="outlined")
        ),
        "gallery_blocks.gif": lambda: drawn(animation_of, coffee, View(size=224, num_clusters=4)),
    }
    if asked.weights:
        tree = View(asked.weights, VIT, num_clusters=16, partition="tree", near=2, far=True)
        pictures["gallery_tree.jpg"] = lambda: leaves(photos / SIX[4], tree)
        pictures["gallery_attends.jpg"] = lambda: attends(photos / SIX[5], (0.5, 0.5), tree)
    for name, make in pictures.items():
        if asked.only and name not in asked.only:
            continue
        picture = make()
        content = small(picture) if isinstance(picture, Figure) else picture
        if len(content) > LARGEST:
            raise SystemExit(f"{name}: {len(content)} bytes; make it smaller")
        (IMAGES / name).write_bytes(content)
        print(IMAGES / name, len(content))


def drawn(draw: Callable[..., Figure | bytes], photo: Path, view: View, gradcam: bool = False) -> Figure | bytes:
    recorded = Recorded(view.network(), sized(read_image(photo), view.size), view)
    more = {"gradcam": gradcam} if gradcam else {}
    return draw(recorded, f"{photo.name} in {view.title}", **more)


def leaves(photo: Path, view: View) -> Figure:
    """The tree's clusters in the blocks that end the quarters of a trained ViT."""
    network, image = view.network(), read_image(photo)
    return draw_clusters(image, cluster_maps(network, normalised(image, network)), f"{photo.name} in a {CALLED}")


def attends(photo: Path, at: tuple[float, float], view: View) -> Figure:
    """What one token attends to in an early and in a late block."""
    network, image = view.network(), read_image(photo)
    pixels = normalised(image, network)
    found = [one for block in (5, 8) for one in token_attention(network, pixels, at, block=block)]
    return draw_attention(image, found, f"{photo.name} in a {CALLED}")


def six(photos: Path) -> Figure:
    """Figure 4: eight clusters at every stage, so that stages can be compared."""
    network, rows = PAGE.network(), []
    for name in SIX:
        image = sized(read_image(photos / name), PAGE.size)
        pixels = normalised(image, network)
        rows.append(Row(image, PAGE.maps(record_keys(network, pixels)), grad_cam(network, pixels)))
    return draw_page(rows, "Eight clusters at every stage, and Grad-CAM", PAGE.note)


def small(figure: Figure) -> bytes:
    """A figure as a JPEG of at most so many bytes, as good as that allows."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    picture = Image.open(content).convert("RGB")
    picture.thumbnail((WIDEST, 10 * WIDEST), Image.Resampling.LANCZOS)
    for quality in range(92, 30, -4):
        jpeg = io.BytesIO()
        picture.save(jpeg, "JPEG", quality=quality, optimize=True)
        if len(jpeg.getvalue()) <= LARGEST:
            break
    return jpeg.getvalue()


if __name__ == "__main__":
    main()
