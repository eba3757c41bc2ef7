"""The panel of the module, section by section. May use: `slicer.client`, `slicer.scene`, `weights`, `settings`."""
