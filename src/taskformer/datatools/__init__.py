"""What makes and checks data: each job is one function, in a file or folder of its own.

:func:`~taskformer.datatools.verify.verify` checks a data set and gives a :class:`~taskformer.datatools.report.Report`;
:func:`~taskformer.datatools.stats.statistics` counts what its labels hold;
:func:`~taskformer.datatools.preview.preview` draws samples;
:func:`~taskformer.datatools.prepare.preparer` makes its folder from what the owners publish;
:func:`~taskformer.datatools.miniature.writer` imitates it with a few drawn images;
:func:`~taskformer.datatools.rendering.render_rooms` renders more of the embedded rooms.
"""
