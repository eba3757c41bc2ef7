"""From two images and settings to a transform.

Offers: `pipeline.register`, and its stages: `inputs`, `linear`, `preparation`, `deformable`, `quality`.
May use: `core`, `images`, `numerics`, `weights`, `encoders`, `features`, `evaluation`.
"""
