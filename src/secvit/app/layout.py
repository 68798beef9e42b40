"""The page: settings on top, what they show below, two of them side by side if wanted; the same for programs."""

import inspect
import reprlib
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
import timm
from gradio.data_classes import FileData
from PIL import Image

from secvit.app.answers import Answers, shown_errors, uploads
from secvit.app.look import AS_IT_IS, COUNTED, MAX_CLUSTERS, PARTITIONS, Setting, extent
from secvit.models.saved import has_weights, saved_config
from secvit.vis.record import layers

SHIPPED = ("secvit_nano.clothing10", "secvit_nano.cifar10")
MIN_SIDE, MAX_SIDE = 64, 640  # px that a network sees
MAX_WAITING = 20  # requests in the queue
MAX_NUMBER = 10**6

INTRO = """\
# What does a network put together?
Tokens of one colour attend to each other. SEC ranks them by the cosine of their keys to the mean key, dark to bright, \
and cuts the ranking into clusters of equal size. A tree sorts by the first principal component and halves, again and \
again; near clusters and summaries of far ones let its clusters see each other."""
CREDIT = "Photos: danielbuechele, vultilion, CC BY 2.0."
CSS = """
.numbers thead {display: none}
.numbers table, .numbers tr, .numbers td {border-color: var(--border-color-primary) !important; font-size: 0.95em}
"""
CLICK = "() => document.querySelector('#picture').click()"


PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
QUEUED: dict[str, Any] = {
    "api_visibility": "private", "trigger_mode": "always_last", "concurrency_id": "network", "concurrency_limit": 1,
}  # fmt: skip


class Page(gr.Blocks):
    """Blocks whose errors are sentences, for programs too, and print nothing of what was sent."""

    async def process_api(self, block_fn, inputs, state=None, **more):
        function = self.fns[block_fn] if isinstance(block_fn, int) else block_fn
        try:
            check(function.inputs, inputs, state)
            return await super().process_api(function, inputs, state, **more)
        except gr.Error as error:
            error.print_exception = False
            raise
        except (
            Exception
        ) as error:  # a fault of this page: where it is, without its message, which may hold what was sent
            print(
                f"secvit app: {type(error).__name__} in\n{''.join(traceback.format_tb(error.__traceback__))}",
                flush=True,
            )
            message = f"the page failed at this ({type(error).__name__}); its terminal says where"
            raise gr.Error(message, print_exception=False) from None


def check(controls: list[Any], values: list[Any], state: Any) -> None:
    """A gr.Error that names the first value from outside that does not fit its control."""
    with shown_errors():
        if len(values) != len(controls):
            names = ", ".join(getattr(control, "label", None) or "state" for control in controls)
            raise ValueError(f"{len(values)} values; give {len(controls)}: {names}")
        for control, value in zip(controls, values):
            if not control.stateful:
                now = state[control._id] if state is not None and control._id in state else control
                fault = misfit(now, value)
                if fault:
                    raise ValueError(f"{now.label}: {reprlib.repr(value)}; {fault}")


def misfit(control: Any, value: Any) -> str | None:
    """What a control wants instead of a value from outside; None where the value fits."""
    if isinstance(control, gr.Number | gr.Slider):
        low, high = control.minimum, control.maximum
        is_whole_number = type(value) is int or (type(value) is float and value.is_integer())
        return None if is_whole_number and low <= value <= high else f"give a whole number from {low} to {high}"
    if isinstance(control, gr.Radio | gr.Dropdown):
        choices = [choice for _, choice in control.choices]
        fits = any(type(value) is type(choice) and value == choice for choice in choices)
        return None if fits else f"choose one of {', '.join(map(str, choices))}"
    if isinstance(control, gr.Checkbox):
        return None if isinstance(value, bool) else "give true or false"
    if isinstance(control, gr.File):
        try:
            path = Path(FileData(**value).path).resolve()
            fits = path.is_file() and path.is_relative_to(uploads())
        except (TypeError, ValueError, OSError):
            fits = False
        return None if fits else "give a photo that was uploaded here, as gradio_client.handle_file does"
    return None


def page(folder: Path, run: str | None = None) -> gr.Blocks:
    """The page, whose own files lie in `folder`.  run: the folder of a run, first among the models."""
    untrained = [name for name in timm.list_models("sec*") if not has_weights(name)]
    models = {
        **(own_model(run) if run else {}),
        **{name: Setting(name) for name in SHIPPED},
        **{f"{name} (random weights)": Setting(name) for name in untrained},
    }
    answers = Answers(models, bundled_photos(folder))
    with Page(title="secvit", analytics_enabled=False, fill_width=True) as demo:
        gr.Markdown(INTRO)
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                photo = gr.State(answers.photos[0] if answers.photos else None)
                drop = gr.File(label="Your photo", file_types=["image"], height=150)
                gallery = gr.Gallery(
                    answers.photos, label="Or one of these", columns=2, height=150, allow_preview=False, buttons=[],
                    visible=bool(answers.photos), elem_id="bundled",
                )  # fmt: skip
                gr.Markdown(CREDIT, visible=bool(answers.photos))
                compare = gr.Checkbox(label="Compare with a second setting", elem_id="compare")
                button = gr.Button("Download the picture", variant="primary")
                picture = gr.DownloadButton(visible="hidden", elem_id="picture")
            with gr.Column(scale=3, min_width=420):
                own = side("a", models, next(iter(models.values())).partition)
            with gr.Column(scale=3, min_width=420, visible=False) as second:
                other = side("b", models, "window")
        drop.upload(answers.take, [drop, photo], [photo, drop], **PRIVATE)
        gallery.select(answers.choose, None, photo, **PRIVATE)
        compare.input(lambda on: gr.Column(visible=on), compare, second, **PRIVATE)
        kept = [compare, photo, *own.controls, *other.controls]
        button.click(answers.keep, kept, picture, **QUEUED).success(None, js=CLICK)
        connect(answers, gr.State(True), demo.load, photo, own)
        connect(answers, compare, compare.input, photo, other)
        with gr.Column(visible=False):
            click = gr.Button().click
            (asked, *controls), seen = program_sides(models)
            click(answers.clusters, [asked, *controls], seen, api_name="clusters", concurrency_id="network")
            places = [gr.Number(50, label=name, precision=0, minimum=0, maximum=100) for name in ("x", "y")]
            drawn = gr.Image(format="png", label="attention")
            click(answers.attends, [asked, *places, *controls], drawn, api_name="attends", concurrency_id="network")
    return demo.queue(max_size=MAX_WAITING)


@dataclass(frozen=True)
class Side:
    """Controls of one setting, in the order of `Setting`, and what shows it.

    asks: whether to show what a token attends to.  panel: holds place, x and y of it, and attention, the picture.
    """

    controls: list[Any]
    shown: list[Any]
    asks: Any
    panel: Any
    place: list[Any]
    attention: Any


def connect(answers: Answers, on: Any, begin: Any, photo: Any, there: Side) -> None:
    """What shows a setting follows its controls and the photo.  on: whether it is shown; begin: the event of that.

    The picture of attention follows its place, too: a click into the clusters, or the sliders.
    """
    shows: dict[str, Any] = {
        "fn": answers.show, "inputs": [on, photo, *there.controls], "outputs": there.shown,
        "show_progress_on": there.shown[:2],
    }  # fmt: skip
    attends: dict[str, Any] = {
        "fn": answers.show_attention, "inputs": [there.asks, photo, *there.place, *there.controls],
        "outputs": there.attention,
    }  # fmt: skip
    model, stage, *rest = there.controls
    moved = gr.on([model.input, stage.input], answers.places, [model, stage], [stage, *rest[:2]], **PRIVATE)
    changed = [photo.change, *(control.input for control in rest)]
    there.shown[0].select(answers.point, photo, [there.asks, *there.place], **PRIVATE)
    there.asks.change(lambda on: gr.Column(visible=on), there.asks, there.panel, **PRIVATE)
    asked = [there.asks.change, *(number.change for number in there.place)]
    for what, begins in ((shows, [begin, *changed]), (attends, [*asked, *changed])):
        moved.then(**what, **QUEUED)
        gr.on(begins, **what, **QUEUED)


def side(name: str, models: dict[str, Setting], partition: str) -> Side:
    """Controls of one setting and what shows it, laid out."""
    first, default = next(iter(models.items()))
    stages, blocks, heads = extent(default.network, default.stage)
    with gr.Group():
        with gr.Row():
            model = gr.Dropdown(list(models), value=first, label="Model", min_width=260)
            stage = gr.Radio(list(range(1, stages + 1)), value=default.stage, label="Stage", min_width=260)
        with gr.Row():
            by = gr.Radio(list(PARTITIONS), value=partition, label="Partition of this stage", min_width=260)
            counted = gr.Radio(list(COUNTED), value=default.counted, label="Clusters of this stage", min_width=260)
        count = gr.Slider(1, MAX_CLUSTERS, default.count, step=1, label="How many", interactive=False)
        with gr.Row():
            near = gr.Number(
                default.near, label="Near clusters, its own among them", precision=0, minimum=1, maximum=MAX_CLUSTERS,
                min_width=260,
            )  # fmt: skip
            far = gr.Checkbox(default.far, label="A summary of every other cluster", min_width=260)
        with gr.Accordion("Block, head, size", open=False), gr.Row():
            block = gr.Slider(0, blocks, default.block, step=1, label="Block (0: the last)", min_width=150)
            head = gr.Slider(1, max(heads, 2), default.head, step=1, label="Head", min_width=150, interactive=heads > 1)
            size = gr.Slider(MIN_SIDE, MAX_SIDE, default.size, step=32, label="Size (px, long side)", min_width=150)
    picture: dict[str, Any] = {"interactive": False, "format": "png", "buttons": ["download", "fullscreen"]}
    with gr.Row():
        clusters, cam = (
            gr.Image(
                label=label, elem_id=f"{id_}_{name}", min_width=320, **picture,
                **supported_by(gr.Image.__init__, alt_text=f"{label} over the photo"),
            )
            for id_, label in (("clusters", "Clusters"), ("cam", "Grad-CAM"))
        )  # fmt: skip
    with gr.Row():
        numbers = gr.Markdown(elem_id=f"numbers_{name}", elem_classes="numbers", min_height=120)
        classes = gr.Label(label="Likeliest of the classes it knows", min_width=240)
    asks = gr.Checkbox(label="What does a token attend to?  Click a place in the clusters", elem_id=f"asks_{name}")
    with gr.Column(visible=False) as panel:
        with gr.Row():
            place = [gr.Slider(0, 100, 50, step=1, label=f"{axis} (%)", min_width=150) for axis in ("x", "y")]
        attention = gr.Image(label="Attention", elem_id=f"attention_{name}", **picture)
    counted.input(lambda how: gr.Slider(interactive=how != AS_IT_IS), counted, count, **PRIVATE)
    controls = [model, stage, block, head, by, counted, count, size, near, far]
    return Side(controls, [clusters, cam, classes, numbers], asks, panel, place, attention)


def supported_by(function: Any, **options: Any) -> dict[str, Any]:
    """Those options that the installed gradio has: 6.0 lacks some of later ones."""
    return {name: value for name, value in options.items() if name in inspect.signature(function).parameters}


def program_sides(models: dict[str, Setting]) -> tuple[list[Any], list[Any]]:
    """What a program gives, with the page's defaults, and what it gets."""
    first, default = next(iter(models.items()))
    numbers = {"precision": 0, "minimum": 0, "maximum": MAX_NUMBER}
    controls = [
        gr.File(label="photo"),
        gr.Dropdown(list(models), value=first, label="model"),
        *(gr.Number(getattr(default, name), label=name, **numbers) for name in ("stage", "block", "head")),
        gr.Dropdown(list(PARTITIONS), value=default.partition, label="partition"),
        gr.Dropdown(list(COUNTED), value=default.counted, label="counted"),
        gr.Number(default.count, label="count", **numbers),
        gr.Number(default.size, label="size", precision=0, minimum=MIN_SIDE, maximum=MAX_SIDE),
        gr.Number(default.near, label="near", **numbers),
        gr.Checkbox(default.far, label="far"),
    ]
    pictures = [gr.Image(format="png", label=name) for name in ("clusters", "cam")]
    return controls, [*pictures, *(gr.JSON(label=name) for name in ("classes", "numbers"))]


def own_model(run: str) -> dict[str, Setting]:
    """The network of a run under the name of its folder; a ValueError where it does not say which it is."""
    name = (saved_config(run).get("model") or {}).get("name")
    if name is None:
        raise ValueError(f"{run}: no config.yaml that names the model; give the folder of a classification run")
    own = Setting(name, checkpoint=run)
    now = layers(own.network)[0].clustering  # here, rather than in the middle of the page, if there is none
    partition = next((shown for shown, name in PARTITIONS.items() if name == now.partition), own.partition)
    own = replace(own, partition=partition, near=now.near, far=now.far)
    return {f"{Path(run).resolve().name} (yours)": own}


def bundled_photos(folder: Path) -> list[str]:
    """Paths of scikit-learn's two photographs, copied into `folder`; none without scikit-learn."""
    try:
        from sklearn.datasets import load_sample_images
    except ImportError:
        return []
    samples = load_sample_images()
    paths = [folder / Path(name).name for name in samples.filenames]
    for path, pixels in zip(paths, samples.images):
        Image.fromarray(pixels).save(path, quality=90)
    return [str(path) for path in paths]
