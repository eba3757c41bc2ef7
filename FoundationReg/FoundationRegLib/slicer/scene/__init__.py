"""MRML nodes: images out of the scene, results into it, the live preview and the review. May use: `core`."""
