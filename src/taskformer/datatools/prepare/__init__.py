"""From what the owners publish to the folders that the data sets read: one module per data set.

:mod:`taskformer.datatools.prepare.sources` downloads, unpacks and converts for all of them.
"""
