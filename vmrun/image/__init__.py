"""Images: from a reference to a private OCI layout that was hashed and judged.

:func:`vmrun.image.fetch.fetch` does it all; the rest answers questions about what was fetched.
Only errors of the :class:`~vmrun.model.errors.ImageError` family, ``UsageError`` and
``StateError`` leave this package; :func:`vmrun.image.tree.resolve` alone says with an error of
its own that a path is not there.
"""
