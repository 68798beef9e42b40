"""What output tokens are made of, over the photo."""

import numpy as np
import pytest
import torch
from PIL import Image

from secvit.connectors import Merged, create
from secvit.vis.connectors import deepest_tokens, draw_merged, lit, merge_photo, picture_of


@pytest.fixture
def image():
    return Image.fromarray(np.random.randint(0, 255, (48, 64, 3), dtype=np.uint8))


def merged(batch=1):
    return create("sec", 8, 4, 6, extra_token=None).merged(torch.randn(batch, 24, 8), grid=(4, 6))


def test_patches_of_an_output_keep_their_colours_and_others_lose_them(image):
    weights = torch.zeros(4, 6)
    weights[1, 2], weights[3, 5] = 0.8, 0.2
    pixels = np.asarray(image) / 255
    out = lit(image, weights)
    x0, y0 = -(-2 * 64 // 6), 12  # the first pixel of column 2 and of row 1
    np.testing.assert_allclose(out[y0 + 2 : y0 + 10, x0 + 2 : x0 + 8], pixels[y0 + 2 : y0 + 10, x0 + 2 : x0 + 8])
    light = out[40:46, 56:62]  # half as much: the root of 0.2 / 0.8
    grey = 0.62 + 0.3 * np.asarray(image.convert("L"))[40:46, 56:62, None] / 255
    np.testing.assert_allclose(light, (pixels[40:46, 56:62] + grey) / 2)
    faded = out[2:8, 2:8]
    assert np.ptp(faded, axis=-1).max() == 0 and faded.min() > 0.6


def test_each_row_is_a_connector_and_each_panel_an_output(image):
    found = merged()
    figure = draw_merged(image, {"one": found, "two": found}, (4, 6), outputs=[0, 5, (0.9, 0.1)])
    assert len(figure.axes) == 8
    words = [text.get_text() for text in figure.texts]
    for output in (0, 5, int(found.weights[0][:, 5].argmax())):  # the patch in the upper right corner is number 5
        assert words.count(f"output {output}") >= 2
    places = figure.axes[0].collections[0].get_offsets()
    np.testing.assert_allclose(places, found.coordinates[0].numpy())
    crosses = figure.axes[1].lines[0].get_xydata()
    np.testing.assert_allclose(crosses, found.coordinates[0, :1].numpy())


def test_a_photo_becomes_a_picture(tmp_path, image):
    image.save(tmp_path / "photo.png")
    path = merge_photo(tmp_path / "photo.png", tmp_path / "merged.png", names=("sec", "pool"), num_tokens=4, model="secvit_nano", size=64)  # fmt: skip
    with Image.open(path) as picture:
        assert picture.width > 5 * 300 and np.ptp(np.asarray(picture.convert("L"))) > 200


def test_the_deepest_map_with_more_tokens_is_taken():
    class Network(torch.nn.Module):
        def forward_intermediates(self, x, intermediates_only):
            return [torch.full((1, 5, 32 // 2**i, 16 // 2**i), float(i)) for i in range(4)]

    tokens, grid = deepest_tokens(Network(), torch.zeros(3, 64, 32), 8)
    assert grid == (8, 4) and tokens.shape == (1, 32, 5) and (tokens == 2).all()
    with pytest.raises(ValueError, match="no map of more than 512 tokens; choose a larger size or fewer tokens"):
        deepest_tokens(Network(), torch.zeros(3, 64, 32), 512)


def test_what_a_tower_saw_is_the_photo_again(image):
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    values = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert np.array_equal(np.asarray(picture_of(values, mean, std)), np.asarray(image))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(outputs=[6]), r"output 6; there are 0 to 5"),
        (dict(outputs=[(1.2, 0)]), r"output at \(1.2, 0\); places \(x, y\) go from 0 to 1"),
        (dict(merged={"many": merged(2)}), r"many: what was merged in 2 images; give one"),
        (dict(grid=(5, 5)), r"24 tokens are no 5 x 5 grid"),
    ],
)
def test_errors_say_what_to_do(image, wrong, said):
    with pytest.raises(ValueError, match=said):
        draw_merged(image, **{"merged": {"one": merged()}, "grid": (4, 6), **wrong})


def test_connectors_that_need_cls_attention_are_drawn_elsewhere(tmp_path, image):
    image.save(tmp_path / "photo.png")
    with pytest.raises(ValueError, match="evit needs a tower's .cls. attention; draw it in a LLaVA, by draw_merged"):
        merge_photo(
            tmp_path / "photo.png", tmp_path / "out.png", names=["evit"], num_tokens=4, model="secvit_nano", size=64
        )


def test_merged_of_another_kind_of_weights_is_drawn_too(image):
    heavy = Merged(torch.eye(24).unsqueeze(0), torch.rand(1, 24, 2), torch.zeros(1, 24, 2))
    assert "made of 1 patch" in {text.get_text() for text in draw_merged(image, {"mlp": heavy}, (4, 6)).texts}
