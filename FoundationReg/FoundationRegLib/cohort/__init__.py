"""Many pairs in one run: reading them, registering them on one or many machines, and what the numbers say.

`pairs` reads the table, `variants` says which settings are compared, `runner` does the work through an executor of
`cluster`, `job` is what a worker does for one pair, `statistics` and `report` tell what came out. Several frames of one
image are a run too: `sequence`.
"""
