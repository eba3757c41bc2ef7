import logging
import os
import sys
import traceback
from typing import Annotated

import slicer
import vtk
from slicer import (
    vtkMRMLLabelMapVolumeNode,
    vtkMRMLMarkupsFiducialNode,
    vtkMRMLMarkupsROINode,
    vtkMRMLScalarVolumeNode,
    vtkMRMLSegmentationNode,
    vtkMRMLTransformableNode,
    vtkMRMLTransformNode,
)
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import Choice, WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

if hasattr(slicer.modules, "FoundationRegWidget"):
    # This is a reload. Slicer runs this file before the old panel's cleanup() (slicer/util.py, reloadScriptedModule),
    # which would find the new library and leave the worker of the old one running: end it, then forget the library,
    # so that its files are read again too.
    if "FoundationRegLib.slicer.client.pump" in sys.modules:
        sys.modules["FoundationRegLib.slicer.client.pump"].use_channel(None)
    for _name in [name for name in sys.modules if name.partition(".")[0] == "FoundationRegLib"]:
        del sys.modules[_name]

from FoundationRegLib.settings import Settings
from FoundationRegLib.slicer.scene.choices import DeformationMode, Intensity, ReviewMode, Start

# Written by `python dev.py format` from CMakeLists.txt.
HOMEPAGE = "https://github.com/to-be-set/SlicerFoundationReg"
DOCUMENTATION = f"{HOMEPAGE}/blob/main/docs"

#
# FoundationReg
#


class FoundationReg(ScriptedLoadableModule):
    """Register 3-D images with the features of pretrained vision foundation models.

    The work is done in the package FoundationRegLib beside this file, by a process of its own.
    """

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self._upkeep = None
        self.parent.title = "FoundationReg"
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Registration")]
        self.parent.dependencies = []
        self.parent.contributors = ["The FoundationReg contributors"]
        self.parent.helpText = _(
            "Registers a moving volume to a fixed one with the features of pretrained vision foundation models, "
            "without any training, and shows how good the result is. Choose two volumes and press Apply. "
            '<a href="{documentation}">Documentation</a>, <a href="{accuracy}">what was measured</a>. '
            "If it helped your work, please cite FoundationReg and the study <i>Are Vision Foundation Models Ready for "
            'Out-of-the-Box Medical Image Registration?</i> (<a href="https://arxiv.org/abs/2507.11569">arXiv '
            "2507.11569</a>)."
        ).format(documentation=f"{DOCUMENTATION}/slicer.md", accuracy=f"{DOCUMENTATION}/accuracy.md")
        self.parent.acknowledgementText = _(
            "After the study <i>Are Vision Foundation Models Ready for Out-of-the-Box Medical Image Registration?</i> "
            '(<a href="https://arxiv.org/abs/2507.11569">arXiv 2507.11569</a>). Not for clinical use.'
        )
        slicer.app.connect("startupCompleted()", self.onStartupCompleted)

    def onStartupCompleted(self) -> None:
        """Called once, when all modules are loaded: whether or not the panel is ever opened."""
        from FoundationRegLib.slicer.scene.upkeep import Upkeep

        registerSampleData()
        if self._upkeep is None:
            self._upkeep = Upkeep(slicer.mrmlScene)


#
# Sample data
#


def registerSampleData() -> None:
    """Add a pair from Slicer's own sample data, and one that is made on the spot, to the Sample Data module."""
    from FoundationRegLib.slicer.scene import samples

    samples.register(os.path.join(os.path.dirname(__file__), "Resources", "Icons", "FoundationRegPhantomPair.png"))


#
# FoundationRegParameterNode
#


DEFAULTS = Settings()
LabelNode = vtkMRMLSegmentationNode | vtkMRMLLabelMapVolumeNode | None
MaskNode = vtkMRMLSegmentationNode | vtkMRMLLabelMapVolumeNode | vtkMRMLScalarVolumeNode | None


@parameterNodeWrapper
class FoundationRegParameterNode:
    """All choices of the panel; they are saved with the scene. Lengths are millimeters.

    What is a setting starts from its default, until a preset is applied.
    """

    initialized: bool = False  # whether the values of the preset were taken over
    fixedVolume: vtkMRMLScalarVolumeNode
    movingVolume: vtkMRMLScalarVolumeNode
    preset: str = "default"
    encoder: str = ""
    combineMind: bool = True
    encoderWeight: Annotated[float, WithinRange(0.01, 10)] = 1.0
    smoothness: Annotated[float, WithinRange(0.1, 10)] = DEFAULTS.smoothness

    makeTransform: bool = True
    outputTransform: vtkMRMLTransformNode
    makeVolume: bool = False
    outputVolume: vtkMRMLScalarVolumeNode
    applyTransform: bool = True
    makeJacobian: bool = False
    interpolation: Annotated[str, Choice(["linear", "nearest", "bspline"])] = "linear"
    voxelType: Annotated[str, Choice(["same", "uint8", "int16", "uint16", "float32"])] = "same"
    background: str = ""
    linearOnly: bool = False

    fixedMask: MaskNode
    movingMask: MaskNode
    excludeFixed: MaskNode
    excludeMoving: MaskNode
    initialTransform: vtkMRMLTransformNode
    fixedLabels: LabelNode
    movingLabels: LabelNode
    fixedLandmarks: vtkMRMLMarkupsFiducialNode
    movingLandmarks: vtkMRMLMarkupsFiducialNode
    guideWithLabels: bool = False
    guideWithLandmarks: bool = False
    fixedBox: vtkMRMLMarkupsROINode
    movingBox: vtkMRMLMarkupsROINode
    fixedBoxMask: vtkMRMLSegmentationNode
    movingBoxMask: vtkMRMLSegmentationNode
    anatomy: str = DEFAULTS.anatomy
    carried: list[vtkMRMLTransformableNode]

    fixedIntensity: Intensity = Intensity.AUTO
    movingIntensity: Intensity = Intensity.AUTO
    bodyMask: bool = DEFAULTS.body_mask
    start: Start = Start.AUTO
    rigid: bool = DEFAULTS.rigid
    affine: bool = DEFAULTS.affine
    axial: bool = True
    coronal: bool = False
    sagittal: bool = False
    sliceGap: Annotated[float, WithinRange(0.5, 50)] = DEFAULTS.slice_gap_mm
    encoderPixels: Annotated[int, WithinRange(0, 2048)] = DEFAULTS.encoder_pixels
    encoderLayers: str = ""
    encoderNormalization: Annotated[str, Choice(["trained", "study"])] = DEFAULTS.encoder_normalisation
    encoderPrecision: Annotated[str, Choice(["auto", "float32", "bfloat16", "float16"])] = DEFAULTS.encoder_precision
    pcaComponents: Annotated[int, WithinRange(1, 256)] = DEFAULTS.pca_components
    searchRange: Annotated[float, WithinRange(0, 200)] = DEFAULTS.search_range_mm
    searchSpacing: Annotated[float, WithinRange(1, 50)] = DEFAULTS.search_spacing_mm
    finestSpacing: Annotated[float, WithinRange(0, 20)] = DEFAULTS.finest_spacing_mm
    iterations: Annotated[int, WithinRange(0, 2000)] = DEFAULTS.iterations
    diffeomorphic: bool = DEFAULTS.diffeomorphic
    device: Annotated[str, Choice(["auto", "cpu", "cuda", "mps"])] = DEFAULTS.device
    memory: Annotated[float, WithinRange(0, 512)] = DEFAULTS.memory_gb
    threads: Annotated[int, WithinRange(0, 256)] = DEFAULTS.threads
    seed: Annotated[int, WithinRange(0, 999999)] = DEFAULTS.seed
    livePreview: bool = True
    keepFiles: bool = False

    reoptimize: bool = True
    reviewMode: ReviewMode = ReviewMode.FADE
    fade: Annotated[float, WithinRange(0, 1)] = 0.5
    flickerRate: Annotated[float, WithinRange(0.5, 10)] = 2.0
    checkSize: Annotated[float, WithinRange(2, 100)] = 20.0
    deformation: DeformationMode = DeformationMode.NONE
    deformationSpacing: Annotated[float, WithinRange(1, 50)] = 10.0
    deformationScale: Annotated[float, WithinRange(10, 500)] = 100.0
    deformationInSlices: bool = True
    deformationIn3D: bool = False


#
# FoundationRegWidget
#


class FoundationRegWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel. What a button does is in `FoundationRegLib.slicer`; here is the life cycle that Slicer asks for."""

    def __init__(self, parent=None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self.panel = None
        self.cohort = None
        self.sequence = None
        self._parameterNode = None
        self._parameterNodeGuiTag = None
        self._parameterNodeObserver = None

    def setup(self) -> None:
        """Called when the user opens the module the first time and the widget is initialized."""
        from FoundationRegLib.slicer.panel.cohort_section import CohortSection
        from FoundationRegLib.slicer.panel.panel import Panel
        from FoundationRegLib.slicer.panel.sequence_section import SequenceSection

        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/FoundationReg.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        interactionWidget = slicer.util.loadUI(self.resourcePath("UI/Interaction.ui"))
        below = uiWidget.layout().indexOf(self.ui.reviewCollapsibleButton) + 1
        uiWidget.layout().insertWidget(below, interactionWidget)
        interactionWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = FoundationRegLogic()
        self.interactionUi = slicer.util.childWidgetVariables(interactionWidget)
        self.panel = Panel(self.ui, self.interactionUi, self.logic)
        cohortWidget = slicer.util.loadUI(self.resourcePath("UI/Cohort.ui"))
        self.layout.addWidget(cohortWidget)
        self.cohort = CohortSection(slicer.util.childWidgetVariables(cohortWidget), lambda: self._parameterNode)
        sequenceWidget = slicer.util.loadUI(self.resourcePath("UI/Sequence.ui"))
        self.layout.addWidget(sequenceWidget)
        sequenceWidget.setMRMLScene(slicer.mrmlScene)
        self.sequence = SequenceSection(slicer.util.childWidgetVariables(sequenceWidget), lambda: self._parameterNode)
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(scene, scene.EndImportEvent, self.onSceneEndImport)
        self.initializeParameterNode()

    def cleanup(self) -> None:
        """Called when the application closes and the module widget is destroyed."""
        self.removeObservers()
        if self.panel is not None:
            self.setParameterNode(None)
            self.cohort.close()
            self.sequence.close()
            self.panel.close()

    def enter(self) -> None:
        """Called each time the user opens this module."""
        self.initializeParameterNode()

    def exit(self) -> None:
        """Called each time the user opens a different module. A running registration goes on."""
        if self._parameterNode:
            self.disconnectParameterNode()
            self.panel.suspend()

    def onSceneStartClose(self, caller, event) -> None:
        """Called just before the scene is closed."""
        self.sequence.close()
        self.setParameterNode(None)

    def onSceneEndClose(self, caller, event) -> None:
        """Called just after the scene is closed."""
        if self.parent.isEntered:
            self.initializeParameterNode()

    def onSceneEndImport(self, caller, event) -> None:
        """A scene was loaded: show the choices and the result that came with it."""
        if self.parent.isEntered:
            self.initializeParameterNode()

    def initializeParameterNode(self) -> None:
        """Ensure parameter node exists and observed."""
        self.disconnectParameterNode()
        parameterNode = self.logic.getParameterNode()
        # While a scene was loaded, the wrapper cached references to nodes that were not there yet.
        parameterNode.parameterNode.Modified()
        self.setParameterNode(parameterNode)
        self.panel.chooseDefaults()

    def setParameterNode(self, inputParameterNode: FoundationRegParameterNode | None) -> None:
        """Set and observe parameter node."""
        self.disconnectParameterNode()
        self._parameterNode = inputParameterNode
        if self._parameterNode:
            self._parameterNodeGuiTag = self._parameterNode.connectGui(self.ui)
            # Not VTKObservationMixin.addObserver: its dictionary would keep the wrapper alive (slicer/util.py).
            modified = vtk.vtkCommand.ModifiedEvent
            self._parameterNodeObserver = self._parameterNode.AddObserver(modified, self.onParametersModified)
        self.panel.setParameters(self._parameterNode)

    def disconnectParameterNode(self) -> None:
        """Let go of the parameter node that is observed."""
        if self._parameterNode:
            self._parameterNode.disconnectGui(self._parameterNodeGuiTag)
            self._parameterNode.RemoveObserver(self._parameterNodeObserver)
        self._parameterNode = self._parameterNodeGuiTag = self._parameterNodeObserver = None

    def onParametersModified(self, caller=None, event=None) -> None:
        self.panel.update()


#
# FoundationRegLogic
#


class FoundationRegLogic(ScriptedLoadableModuleLogic):
    """Registers nodes; needs no widget.

    .. code-block:: python

      from FoundationReg import FoundationRegLogic
      fixed, moving = slicer.util.getNode("MRBrainTumor1"), slicer.util.getNode("MRBrainTumor2")
      result = FoundationRegLogic().process(fixed, moving)
      print(result.quality, result.metrics["after"])

    Without waiting:

    .. code-block:: python

      job = FoundationRegLogic().process(fixed, moving, waitForCompletion=False, onEvent=print)
      job.cancel()
    """

    def __init__(self) -> None:
        ScriptedLoadableModuleLogic.__init__(self)
        self._parameterNode = None

    @property
    def channel(self):
        """The way to the worker process, which all logic objects share and which stays warm between runs."""
        from FoundationRegLib.slicer.client import pump

        return pump.shared_channel()

    def getParameterNode(self):
        """The typed parameter node, the same as long as the node in the scene is the same."""
        node = super().getParameterNode()
        if self._parameterNode is None or self._parameterNode.parameterNode is not node:
            self._parameterNode = FoundationRegParameterNode(node)
        return self._parameterNode

    def process(
        self,
        fixedNode: vtkMRMLScalarVolumeNode,
        movingNode: vtkMRMLScalarVolumeNode,
        outputTransform: vtkMRMLTransformNode | None = None,
        outputVolume: vtkMRMLScalarVolumeNode | None = None,
        preset: str = "default",
        settings: dict | None = None,
        waitForCompletion: bool = True,
        onEvent=None,
        **options,
    ):
        """Register the moving to the fixed volume.

        :param fixedNode: volume that stays where it is.
        :param movingNode: volume that is moved; its parent transforms are where the search starts.
        :param outputTransform: transform node to fill. Without any output a new one is made.
        :param outputVolume: volume node to fill with the moving image in the geometry of the fixed one.
        :param preset: name of a preset.
        :param settings: changes to the preset, by the field names of ``FoundationRegLib.settings.Settings``.
        :param waitForCompletion: block until the end (Slicer stays responsive) or return at once.
        :param onEvent: called with a dictionary for each step of progress and at the end.
        :param options: other fields of ``FoundationRegLib.slicer.client.request.RegistrationRequest`` by name, such as
          ``fixed_mask``, ``moving_mask``, ``exclude_fixed``, ``exclude_moving``, ``initial_transform``,
          ``fixed_points``, ``moving_points``, ``guide_with_points``, ``fixed_box``, ``moving_box``, ``jacobian``.
        :returns: a ``RegistrationResult`` with the nodes and metrics, or, without waiting, the ``RegistrationJob``,
          which has ``state``, ``result``, ``error``, ``cancel()``, ``finish()`` and ``wait()``.
        :raises FoundationRegLib.errors.FoundationRegError: with one plain sentence.
        """
        from FoundationRegLib.settings import Settings
        from FoundationRegLib.slicer.client.request import RegistrationRequest
        from FoundationRegLib.slicer.panel import availability, dependencies

        chosen = Settings.from_preset(preset, **(settings or {}))
        dependencies.check(availability.encoder(name).family for name, _weight in chosen.encoders)
        request = RegistrationRequest(
            fixedNode,
            movingNode,
            chosen.to_dict(),
            output_transform=outputTransform,
            output_volume=outputVolume,
            **options,
        )
        job = self.start(request, onEvent)
        return job.wait(slicer.app.processEvents) if waitForCompletion else job

    def start(self, request, onEvent=None, allowFolded=None):
        """Start a ``RegistrationRequest`` and return the ``RegistrationJob``; see `process`."""
        from FoundationRegLib.slicer.client.job import RegistrationJob

        def tell(event: dict) -> None:
            if event["event"] == "log":
                logging.debug(event.get("message", ""))
            if onEvent is not None:
                try:
                    onEvent(event)
                except Exception:
                    logging.error(traceback.format_exc())

        return RegistrationJob(self.channel, request, tell, allowFolded)


#
# FoundationRegTest
#


class FoundationRegTest(ScriptedLoadableModuleTest):
    """Self-test for Slicer's "Reload and Test"; the tests in the repository's Testing folder go much further."""

    def setUp(self):
        slicer.mrmlScene.Clear()

    def runTest(self):
        self.setUp()
        self.test_SampleData()
        self.setUp()
        self.test_RegisterPhantom()

    def test_SampleData(self):
        """The generated pair loads without network and can be registered."""
        import SampleData

        registerSampleData()
        self.delayDisplay("Making the phantom pair")
        fixed, moving = SampleData.downloadSamples("FoundationRegPhantomPair")
        self.assertGreater(fixed.GetImageData().GetScalarRange()[1], 100)
        self.assertGreater(moving.GetImageData().GetScalarRange()[1], 100)
        self.assertIn("FoundationReg", slicer.modules.sampleDataSources)

    def test_RegisterPhantom(self):
        """The whole way through the worker. Skipped where PyTorch is not installed, as on the build machines."""
        import SampleData
        from FoundationRegLib.slicer.panel import dependencies

        registerSampleData()
        if dependencies.torch_version() is None:
            self.delayDisplay("PyTorch is not installed: the registration is not tested")
            return
        fixed, moving = SampleData.downloadSamples("FoundationRegPhantomPair")
        self.delayDisplay("Registering the phantom pair")
        result = FoundationRegLogic().process(fixed, moving, settings={"encoders": "mind", "iterations": 20})
        self.assertIs(moving.GetParentTransformNode(), result.transformNode)
        self.assertGreater(result.metrics["after"]["nmi"], result.metrics["before"]["nmi"])
        self.delayDisplay("Test passed")
