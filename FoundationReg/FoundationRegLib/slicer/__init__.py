"""What runs inside Slicer: nodes (`scene`), the worker's other end (`client`) and the panel (`panel`).

May use: `core`, `settings`, `weights` and the titles of `evaluation`; `panel` uses `client`, which uses `scene`.
"""
