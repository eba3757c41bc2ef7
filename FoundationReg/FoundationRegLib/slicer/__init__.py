"""What touches MRML, VTK or Qt. Nothing below this folder's siblings may import it."""
