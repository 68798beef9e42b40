"""Drawing that knows no task: figures, pages of panels, curves of a run, confusion matrices."""

from secvit.extras import needs

with needs("secvit.draw", "matplotlib", "vis"):
    import matplotlib  # noqa: F401

from secvit.draw.confusion import draw_confusion
from secvit.draw.curves import draw_curves
from secvit.draw.panels import Legend, Panel, draw_panels
from secvit.draw.picture import check_output, new_figure, save

__all__ = [
    "Legend",
    "Panel",
    "check_output",
    "draw_confusion",
    "draw_curves",
    "draw_panels",
    "new_figure",
    "save",
]
