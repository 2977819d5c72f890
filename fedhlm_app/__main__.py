"""`python -m fedhlm_app` is the `fedhlm` command."""

from fedhlm_app.cli import main

if __name__ == "__main__":
    main()
