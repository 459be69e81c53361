"""A browser for the pages."""

from html_pages import browser, open_page

__all__ = ["browser", "open_page"]
