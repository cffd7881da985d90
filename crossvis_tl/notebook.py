"""A page inside a notebook's output: an `<iframe srcdoc>`, the one way that works in Jupyter and Colab alike."""

import html
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from crossvis_tl.page import render_page
from crossvis_tl.page_data import feature_page

if TYPE_CHECKING:
    from crossvis_tl.dashboards import Dashboards

# Larger pages make a notebook slow to open and save; they go to a file.
LARGEST_INLINE = 10 * 2**20


# Pixels of a page above the columns of its layout.
ABOVE_COLUMNS, TALLEST = 260, 1100


def show(data: "Dashboards", feature_idx: int | None, height: int | None) -> None:
    """Displays the page in the output of the running cell; above 10 MiB saves it and says where. `height` in pixels,
    None for what the layout needs. The frame can be drawn larger by its corner.

    RuntimeError outside a notebook's Python.
    """
    try:
        from IPython.display import HTML, display
    except ImportError as error:
        raise RuntimeError(
            "show() needs a notebook (IPython is not installed); use save_feature_centric_vis('page.html')"
        ) from error
    head, payloads = feature_page(data, feature_idx)
    pixels = int(height or min(head["layout"]["height"] + ABOVE_COLUMNS, TALLEST))
    page = render_page(head, payloads)
    if len(page) > LARGEST_INLINE:
        path = _save(page)
        megabytes = len(page) / 2**20
        display(HTML(html.escape(f"The page is {megabytes:.1f} MiB, too large to show here; it is saved as {path}")))
        return
    style = f"width:100%;height:{pixels}px;border:0;resize:vertical"
    display(
        HTML(f'<iframe srcdoc="{html.escape(page, quote=True)}" style="{style}" title="Feature dashboards"></iframe>')
    )


def _save(page: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="crossvis_", dir=Path.cwd()))
    path = folder / "features.html"
    path.write_text(page, encoding="utf-8", newline="")  # a payload holds line feeds
    return path
