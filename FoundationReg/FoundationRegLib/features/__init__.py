"""From two volumes to comparable features in the patient's space.

Offers: `extraction.encode_shared`, with its slices (`slicing`), batches (`batching`), feature lattices (`raster`) and
the principal components that both images share (`pca`). May use: `core`, `numerics`, `encoders`.
"""
