"""``taskformer data``: work on data sets."""

from jsonargparse import auto_cli

from taskformer.data.rendering import render_rooms


def main(argv: list[str]) -> None:
    """Run one of the data commands."""
    auto_cli({"render": render_rooms}, args=argv[1:], prog="taskformer data", as_positional=False)
