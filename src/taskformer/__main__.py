"""``python -m taskformer`` is the console script."""

from taskformer.cli import main

if __name__ == "__main__":
    main()
