"""What every other package needs, with the standard library and numpy alone.

Offers: where voxels lie (`grid`), progress and cancelling (`progress`), a cache bounded by bytes (`cache`) and the
files that ship with the package (`resources`). May use: nothing of ours but `errors`.
"""
