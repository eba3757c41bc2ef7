"""The border to SimpleITK: images, transforms and landmarks of files, and arrays with a `core.grid.Grid`.

Offers: reading and writing, conversion, resampling, inversion, landmarks and the preparation of grey values.
May use: `core`.
"""
