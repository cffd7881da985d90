"""The page: Python writes the data (`contract`), the viewer beside it draws. Standard library only."""

from crossvis_tl.page.build import render_page, write_page

__all__ = ["render_page", "write_page"]
