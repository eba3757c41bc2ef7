"""Encoders: from grey slices or volumes to features. `catalogue` lists them, `load_encoder` builds one."""
