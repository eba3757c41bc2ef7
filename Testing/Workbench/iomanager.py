"""Stand-in for the application's file reader and writer (Base/QTCore/qSlicerCoreIOManager.h), on the real logics and
storage nodes. ``slicer.util.loadVolume``, ``saveNode``, ``loadScene`` and so on go through it.
"""

import os

import slicer
import vtk
from PySide6.QtCore import QObject

_SCENE = (".mrml", ".mrb")
_TYPES = (
    ("SceneFile", _SCENE),
    ("SegmentationFile", (".seg.nrrd", ".seg.nhdr", ".seg.vtm")),
    ("MarkupsFile", (".mrk.json", ".fcsv")),
    ("TransformFile", (".h5", ".tfm", ".mat")),
    ("VolumeFile", (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".tif", ".tiff", ".hdr", ".img", ".mgz")),
)
_WRITERS = (
    ("vtkMRMLLabelMapVolumeNode", "VolumeFile"),
    ("vtkMRMLVolumeNode", "VolumeFile"),
    ("vtkMRMLTransformNode", "TransformFile"),
    ("vtkMRMLSegmentationNode", "SegmentationFile"),
    ("vtkMRMLMarkupsNode", "MarkupsFile"),
)
# Loading options of vtkSlicerVolumesLogic::AddArchetypeVolume (vtkSlicerVolumesLogic.h, LoadingOptions).
_LABELMAP, _AUTO_WINDOW_LEVEL = 1, 8


class qSlicerCoreIOManager(QObject):
    """Reads files into the scene and writes nodes to files."""

    def fileType(self, file_name):
        lower = str(file_name).lower()
        return next((kind for kind, extensions in _TYPES if lower.endswith(extensions)), "NoFile")

    def fileWriterFileType(self, node, extension=""):
        return next((kind for class_name, kind in _WRITERS if node.IsA(class_name)), "NoFile")

    def loadNodes(self, fileType, parameters, loadedNodes=None, userMessages=None):
        file_name = str(parameters["fileName"])
        if not os.path.exists(file_name):
            if userMessages is not None:
                userMessages.AddMessage(vtk.vtkCommand.ErrorEvent, f"File does not exist: {file_name}")
            return False
        reader = getattr(self, f"_load_{fileType}", None)
        node = reader(file_name, parameters) if reader else None
        if node and node is not True and loadedNodes is not None:
            loadedNodes.AddItem(node)
        return bool(node)

    def loadScene(self, fileName, clear=True, userMessages=None):
        return self.loadNodes("SceneFile", {"fileName": fileName, "clear": clear}, None, userMessages)

    def _load_SceneFile(self, file_name, parameters):
        scene, clear = slicer.mrmlScene, parameters.get("clear", False)
        if file_name.lower().endswith(".mrb"):
            return bool(scene.ReadFromMRB(file_name, clear))
        scene.SetURL(file_name)
        return bool(scene.Connect() if clear else scene.Import())

    def _load_VolumeFile(self, file_name, parameters):
        options = _AUTO_WINDOW_LEVEL | (_LABELMAP if parameters.get("labelmap") else 0)
        name = parameters.get("name") or _base_name(file_name)
        node = slicer.modules.volumes.logic().AddArchetypeVolume(file_name, name, options)
        if node and parameters.get("show", True):
            selection = slicer.app.applicationLogic().GetSelectionNode()
            if node.IsA("vtkMRMLLabelMapVolumeNode"):
                selection.SetActiveLabelVolumeID(node.GetID())
            else:
                selection.SetActiveVolumeID(node.GetID())
            slicer.app.applicationLogic().PropagateVolumeSelection()
        return node

    def _load_TransformFile(self, file_name, parameters):
        return slicer.modules.transforms.logic().AddTransform(file_name, slicer.mrmlScene)

    def _load_SegmentationFile(self, file_name, parameters):
        name = parameters.get("name") or _base_name(file_name)
        return slicer.modules.segmentations.logic().LoadSegmentationFromFile(file_name, True, name)

    def _load_MarkupsFile(self, file_name, parameters):
        name = parameters.get("name") or _base_name(file_name)
        node_id = slicer.modules.markups.logic().LoadMarkups(file_name, name)
        return slicer.mrmlScene.GetNodeByID(node_id) if node_id else None

    def saveNodes(self, fileType, parameters, userMessages=None):
        file_name = str(parameters["fileName"])
        if fileType == "SceneFile":
            return self.saveScene(file_name, None, userMessages)
        node = slicer.mrmlScene.GetNodeByID(parameters["nodeID"])
        storage = node.GetStorageNode()
        if storage is None:
            node.AddDefaultStorageNode()
            storage = node.GetStorageNode()
        storage.SetFileName(file_name)
        if "useCompression" in parameters:
            storage.SetUseCompression(parameters["useCompression"])
        return bool(storage.WriteData(node))

    def saveScene(self, fileName, screenShot=None, userMessages=None):
        scene = slicer.mrmlScene
        if fileName.lower().endswith(".mrb"):
            return bool(scene.WriteToMRB(fileName))
        if not fileName.lower().endswith(".mrml"):
            return bool(scene.SaveSceneToSlicerDataBundleDirectory(fileName))
        scene.SetRootDirectory(os.path.dirname(os.path.abspath(fileName)))
        scene.SetURL(fileName)
        return bool(scene.Commit(fileName))


def _base_name(file_name: str) -> str:
    base = os.path.basename(file_name)
    known = sorted((extension for _, extensions in _TYPES for extension in extensions), key=len, reverse=True)
    extension = next((e for e in known if base.lower().endswith(e)), "")
    return base[: len(base) - len(extension)] if extension else os.path.splitext(base)[0]
