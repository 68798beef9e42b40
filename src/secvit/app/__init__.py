"""A local page to play with: drop a photo, choose a partition, see what a network puts together.

`look` finds what is to be seen, `page` lays it out, `serve` shows it in a browser.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from secvit.app.files import KEPT_MB, own_folder, sweep
from secvit.app.guard import Guard
from secvit.extras import needs

SWEEP_SECONDS = 10


def serve(
    run: str | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    allow_hosts: Sequence[str] = (),
    max_upload_mb: int = 20,
) -> None:
    """Serve the page until Ctrl-C; all that it writes lies in a temporary folder, which goes when it stops.

    run: folder of a classification run, first among the models.
    host: where it listens: this computer alone, or 0.0.0.0 for all of the network.
    port: where it listens; None takes the first free one from 7860 on.
    allow_hosts: further names under which it answers, NAME or NAME:PORT, as of a reverse proxy or a forwarded port.
        Its own are localhost, 127.0.0.1, [::1], `host` and the address that it is reached at.
    max_upload_mb: larger files are refused.
    """
    if max_upload_mb < 1:
        raise ValueError(f"max_upload_mb={max_upload_mb}; choose 1 or more")
    if not host:
        raise ValueError("host is empty; give 127.0.0.1 for this computer alone, 0.0.0.0 for all of the network")
    guard: Callable[..., Guard] = partial(Guard, host=host, allow_hosts=allow_hosts, max_upload_mb=max_upload_mb)
    guard(None)  # a wrong name is said before the work
    with own_folder() as folder:
        for name in ("GRADIO_TEMP_DIR", "MPLCONFIGDIR"):  # before gradio and matplotlib are imported
            os.environ[name] = str(folder / name.lower())
        pictures = folder / "gradio_temp_dir"
        pictures.mkdir()
        make_room = partial(sweep, pictures, max_mb=max(KEPT_MB, 2 * max_upload_mb))
        with needs("secvit app", "gradio", "app"):
            import gradio as gr
        from secvit.app.layout import CSS, page, supported_by

        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the folder goes then, too
        demo = page(folder, run)
        # gradio's own weight of 600 lacks most letters
        letters = gr.themes.utils.fonts.LocalFont("Source Sans Pro", weights=(400, 700))
        address = f"[{host}]" if ":" in host and not host.startswith("[") else host
        try:
            demo.launch(
                server_name=address, server_port=port, max_file_size=max_upload_mb * 1024**2, prevent_thread_lock=True,
                share=False, ssr_mode=False, quiet=True, footer_links=["api"], css=CSS,
                theme=gr.themes.Default(primary_hue="teal", font=[letters, "sans-serif"]),
                app_kwargs={"lifespan": partial(guarded, guard=guard, pictures=pictures, make_room=make_room)},
                **supported_by(demo.launch, run_history=False),
            )  # fmt: skip
        except OSError:
            where = f"{host}, port {port}" if port else host
            raise ValueError(f"cannot listen at {where}: taken, or not this computer's; choose another") from None
        if not isinstance(demo.app.middleware_stack, Guard):
            demo.close()
            raise RuntimeError(
                f"gradio {gr.__version__} does not let the page check who asks; install gradio 6.0 to 6.31"
            )
        print(f"secvit app: {demo.local_url} (Ctrl-C stops it)", flush=True)
        demo.block_thread()


@asynccontextmanager
async def guarded(app: Any, guard: Any, pictures: Path, make_room: Any) -> AsyncIterator[None]:
    """While the server runs, the guard stands before all of gradio, and pictures are swept."""
    make_room = partial(make_room, keep={str(path) for path in pictures.rglob("*")})  # the page's own
    # `add_middleware` would leave gradio's own in front: the server asks `middleware_stack`, and listens after this
    app.middleware_stack = guard(app.middleware_stack, make_room=make_room)

    async def regularly() -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            await asyncio.to_thread(make_room)

    sweeping = asyncio.create_task(regularly())
    yield
    sweeping.cancel()
    with suppress(asyncio.CancelledError):
        await sweeping
