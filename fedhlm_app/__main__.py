"""The `fedhlm` command, as `python -m fedhlm_app` too: Ctrl-C is heard while it is being loaded."""

INTERRUPTED = 130


def main() -> None:
    """Load the command line and run it."""
    try:
        from fedhlm_app.cli import main as command

        command()
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


if __name__ == "__main__":
    main()
