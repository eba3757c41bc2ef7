"""A finished registration in the user's hands: asked, corrected by hand, refined in a region.

Offers: `probe.correspondence`, `correction.Corrections`, `region.refine_region`; each works on a `Workspace`.
May use: `core`, `images`, `numerics`, `weights`, `encoders`, `registration`.
"""
