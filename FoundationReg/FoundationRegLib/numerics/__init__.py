"""Tensors in, tensors out: the search for a deformation and its refinement. No settings, no files, no SimpleITK.

Offers: displacement and velocity fields (`fields`), the discrete search (`search`), the iterative refinement
(`refinement`, `regularisation`) and linear alignment (`mutual_information`, `block_matching`). May use: `core`.
"""
