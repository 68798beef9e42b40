"""What the page does when something on it is changed: the pictures and numbers of a setting, for programs too."""

# without `from __future__ import annotations`: gradio reads the types of the methods of `Answers`
import html
import os
import reprlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import gradio as gr

from secvit.app.files import use
from secvit.app.look import Seen, Setting, attention, draw, extent, look, open_photo, place_of
from secvit.draw.picture import save
from secvit.vis.clusters import UNTRAINED

NOTHING = "Drop a photo on the left, or take one of those below it."


class Answers:
    """What controls call.  models: settings by the names that the page offers.  photos: the page's own."""

    def __init__(self, models: dict[str, Setting], photos: list[str]) -> None:
        self.models, self.photos = models, photos

    def _seen(self, photo: str, *settings) -> Seen:
        use(photo)
        return look(photo, self._setting(*settings))

    def _setting(self, model: str, stage, block, head, partition, counted, count, size, near, far) -> Setting:
        return replace(
            self.models[model], stage=stage, block=block, head=head, partition=partition, counted=counted, count=count,
            size=size, near=near, far=far,
        )  # fmt: skip

    def show(self, on: bool, photo: str | None, *settings, progress=gr.Progress()):  # noqa: B008  how gradio hands it over
        if photo is None or not on:
            return None, gr.Image(None, label="Grad-CAM"), None, NOTHING if on else ""
        progress(0.3, f"{settings[0]} looks at it")
        with shown_errors():
            seen = self._seen(photo, *settings)
        if seen.cam is None:
            return seen.clusters, gr.Image(None, label="Grad-CAM"), None, f"{table(seen)}\n\n{UNTRAINED}"
        label = f'Grad-CAM of "{next(iter(seen.classes))}"'
        return seen.clusters, gr.Image(seen.cam, label=label), seen.classes, table(seen)

    def keep(self, comparing: bool, photo: str | None, *settings):
        half = len(settings) // 2
        with shown_errors():
            if photo is None:
                raise ValueError(NOTHING)
            use(photo)
            figure = draw(
                photo, [self._setting(*settings[:half]), *([self._setting(*settings[half:])] if comparing else [])]
            )
            place = Path(tempfile.mkdtemp(dir=uploads()))  # two photos of one name do not meet
            return str(save(figure, place / f"{Path(photo).stem}_clusters.png"))

    def places(self, model: str, stage: int):
        network = self.models[model].network
        stages = extent(network, 1)[0]
        stage = min(stage, stages)
        _, blocks, heads = extent(network, stage)
        return (
            gr.Radio(list(range(1, stages + 1)), value=stage),
            gr.Slider(maximum=blocks, value=0),
            gr.Slider(maximum=max(heads, 2), value=1, interactive=heads > 1),
        )

    def clusters(self, photo, model, stage, block, head, partition, counted, count, size, near, far):
        with shown_errors():
            seen = self._seen(photo, model, stage, block, head, partition, counted, count, size, near, far)
        return seen.clusters, seen.cam, seen.classes, seen.numbers

    def attends(self, photo, x, y, model, stage, block, head, partition, counted, count, size, near, far):
        setting = (model, stage, block, head, partition, counted, count, size, near, far)
        with shown_errors():
            use(photo)
            return attention(photo, self._setting(*setting), x, y)

    def show_attention(self, on: bool, photo: str | None, x: int, y: int, *settings):
        return self.attends(photo, x, y, *settings) if on and photo is not None else None

    def point(self, photo: str | None, event: gr.SelectData):
        """Where the picture of clusters was clicked, in per cent, and that its token's attention is wanted."""
        with shown_errors():
            at = event.index
            fits = isinstance(at, list) and len(at) == 2 and all(type(number) in (int, float) for number in at)
            if photo is None or not fits:
                raise ValueError(f"a click at {reprlib.repr(at)}; click into the picture of a photo")
            return True, *place_of(photo, at)

    def take(self, dropped: str, before: str | None):
        """The drop zone is emptied for the next photo; one that cannot be read leaves the page as it is."""
        try:
            open_photo(dropped)
        except ValueError as error:
            gr.Warning(text(error))
            return before, None
        return dropped, None

    def choose(self, event: gr.SelectData):
        with shown_errors():
            if event.index not in range(len(self.photos)):
                raise ValueError(f"photo {reprlib.repr(event.index)}; there are {len(self.photos)}")
        return self.photos[event.index]


def uploads() -> Path:
    """Where uploads and pictures lie."""
    return Path(os.environ["GRADIO_TEMP_DIR"]).resolve()


@contextmanager
def shown_errors() -> Iterator[None]:
    """What cannot be is said on the page, as text."""
    try:
        yield
    except ValueError as error:
        raise gr.Error(text(error), print_exception=False) from None


def text(error: Exception) -> str:
    """A message that the page's HTML shows as it is; quotes stay, as programs read them too."""
    return html.escape(str(error), quote=False)


def table(seen: Seen) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in seen.numbers.items())])
