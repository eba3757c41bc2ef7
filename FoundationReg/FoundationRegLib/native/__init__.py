"""Compiled kernels for the CPU: what the registration spends its time on, in one pass each instead of many.

They are optional. Where no library has been built (`build`), or FOUNDATIONREG_NATIVE is 0, `numerics` does the same
with torch. Their sources are in Resources/Kernels; `kernels` calls them, `library` finds and loads them.
"""
