"""``python -m daemon``, and the script ``outrider``."""

from __future__ import annotations


def main() -> None:
    """Run the command line."""
    from daemon.cli import app

    app(prog_name="outrider")


if __name__ == "__main__":
    main()
