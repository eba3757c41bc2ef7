"""Encoders: networks and descriptors that turn grey slices or volumes into features.

Offers: `loading.load_encoder`, which builds one from its catalogue entry, and the families. May use: `core`, `weights`.
"""
