"""A local page to play with: drop a photo, choose a partition, see what a network puts together.

`look` finds what is to be seen, `page` lays it out, `serve` shows it in a browser.
"""

import os
import signal
import sys
import tempfile
from pathlib import Path

from secvit.extras import needs


def serve(
    host: str = "127.0.0.1", port: int | None = None, checkpoint: str | None = None, max_upload_mb: int = 20
) -> None:
    """Serve the page until Ctrl-C; all that it writes lies in a temporary folder, which goes when it stops.

    port: None takes the first free one from 7860 on.  checkpoint: the folder of a run, first among the models.
    max_upload_mb: larger files are refused.
    """
    if max_upload_mb < 1:
        raise ValueError(f"max_upload_mb={max_upload_mb}; choose 1 or more")
    with tempfile.TemporaryDirectory(prefix="secvit_app_") as folder:
        for name in ("GRADIO_TEMP_DIR", "MPLCONFIGDIR"):  # before gradio and matplotlib are imported
            os.environ[name] = str(Path(folder, name.lower()))
        with needs("secvit app", "gradio", "app"):
            import gradio as gr
        from secvit.app.layout import CSS, page

        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the folder goes then, too
        demo = page(Path(folder), checkpoint)
        letters = gr.themes.LocalFont("Source Sans Pro", weights=(400, 700))  # gradio's own 600 lacks most of them
        try:
            demo.launch(
                server_name=host, server_port=port, max_file_size=max_upload_mb * 1024**2, prevent_thread_lock=True,
                share=False, run_history=False, ssr_mode=False, quiet=True, footer_links=["api"], css=CSS,
                theme=gr.themes.Default(primary_hue="teal", font=[letters, "sans-serif"]),
            )  # fmt: skip
        except OSError:
            where = f"{host}, port {port}" if port else host
            raise ValueError(f"cannot listen at {where}: taken, or not this computer's; choose another") from None
        print(f"secvit app: {demo.local_url} (Ctrl-C stops it)", flush=True)
        demo.block_thread()
