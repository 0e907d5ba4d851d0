"""One file per command of the ``taskformer`` program; each has a ``main(argv)``."""
