"""Boxes: the decoder against the original, masks of a phantom from boxes, and boxes that cannot be."""

import importlib.util
import json
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import make_grid, rotation
from FoundationRegLib.app import cli, commands
from FoundationRegLib.encoders.box_decoder import build_box_decoder
from FoundationRegLib.errors import InputError, WeightsError
from FoundationRegLib.features.box_masks import box_mask
from FoundationRegLib.images.conversion import image_from_array
from FoundationRegLib.images.transforms import affine_matrix
from FoundationRegLib.registration import boxes, encoding, feature_review, pipeline
from FoundationRegLib.settings import Settings
from FoundationRegLib.weights import store
from FoundationRegLib.weights.catalogue import entry


def original_parts():
    """SAM's own prompt encoder and mask decoder, at MedSAM-Lite's sizes, with random weights.

    From the package's folder ``modeling`` alone: the package around it asks for torchvision.
    """
    name = "segment_anything_modeling_for_tests"
    package = types.ModuleType(name)
    place = importlib.util.find_spec("segment_anything").submodule_search_locations[0]
    package.__path__ = [str(Path(place) / "modeling")]
    sys.modules[name] = package
    prompts, decoder, transformer = (
        importlib.import_module(f"{name}.{part}") for part in ("prompt_encoder", "mask_decoder", "transformer")
    )
    attention = transformer.TwoWayTransformer(2, 256, 8, 2048)
    return (
        prompts.PromptEncoder(256, (64, 64), (256, 256), 16).eval(),
        decoder.MaskDecoder(transformer_dim=256, transformer=attention).eval(),
    )


@pytest.mark.skipif(importlib.util.find_spec("segment_anything") is None, reason="segment-anything is not installed")
def test_the_decoder_agrees_with_the_original(tmp_path):
    torch.manual_seed(0)
    prompts, decoder = original_parts()
    state = {f"prompt_encoder.{name}": value for name, value in prompts.state_dict().items()}
    state |= {f"mask_decoder.{name}": value for name, value in decoder.state_dict().items()}
    torch.save({**state, "image_encoder.other": torch.zeros(1)}, tmp_path / "w.pth")
    tokens, faces = torch.randn(1, 256, 64, 64), torch.tensor([[30.0, 40, 150, 200], [1, 2, 256, 256]])
    with torch.inference_mode():
        # The original takes pixel indices and adds half a pixel itself.
        sparse, dense = prompts(None, faces - 0.5, None)
        masks, quality = decoder(tokens, prompts.get_dense_pe(), sparse, dense, False)
        made, guess = build_box_decoder(tmp_path / "w.pth")(tokens, faces / 256)
    torch.testing.assert_close(made, masks[:, 0], atol=2e-5 * float(masks.abs().max()), rtol=1e-4)
    torch.testing.assert_close(guess, quality[:, 0], atol=1e-5, rtol=1e-4)
    del state["mask_decoder.iou_token.weight"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"mask_decoder\.iou_token\.weight"):
        build_box_decoder(tmp_path / "w.pth")


class MeanEncoder:
    """Tokens are the mean grey values of 4 by 4 pixels."""

    id, channels, stride, multiple, pixels, weights_sha256 = "mean", 1, 4, 4, 128, ""

    def __call__(self, slices):
        return torch.nn.functional.avg_pool2d(slices, 4)


def bright_in_box(tokens, faces):
    """A decoder that finds what is bright, and only within the box."""
    logits = torch.nn.functional.interpolate(20 * (tokens - 0.5), scale_factor=4, mode="bilinear")[:, 0]
    height, width = logits.shape[1:]
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    left, top, right, bottom = faces[0]
    inside = (x >= left) & (x <= right) & (y >= top) & (y <= bottom)
    return torch.where(inside, logits, torch.tensor(-20.0)), torch.ones(1)


def egg_on(grid, middle, axes=(16.0, 12.0, 20.0)):
    points = grid.points(np.moveaxis(np.indices(grid.shape), 0, -1))
    return np.linalg.norm((points - middle) / axes, axis=-1) < 1


def faces_of(mask, slack=1.0):
    places = np.argwhere(mask)
    low, high = places.min(0) - 0.5 - slack, places.max(0) + 0.5 + slack
    return tuple(zip(low.tolist(), high.tolist(), strict=True))


def overlap(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_the_mask_of_a_box_is_the_organ_and_not_its_neighbour(grid):
    middle = np.array([2.0, -1.0, 3.0])
    organ = egg_on(grid, middle)
    neighbour = egg_on(grid, middle + np.array([34.0, 0, 0]), axes=(8.0, 8.0, 8.0))
    image = 0.1 + 0.8 * (organ | neighbour)
    made = box_mask(image.astype(np.float32), grid, faces_of(organ), MeanEncoder(), bright_in_box)
    assert overlap(made, organ) > 0.9
    assert not (made & neighbour).any()


def test_an_organ_that_does_not_fill_its_box_is_left_to_the_decoder():
    grid = make_grid((24, 40, 40), (3.0, 2.0, 2.0))
    image = np.zeros(grid.shape, np.float32)
    image[4:20, 6:34, 6:12] = 1
    image[4:20, 6:12, 6:34] = 1
    made = box_mask(image, grid, faces_of(image > 0), MeanEncoder(), bright_in_box)
    assert overlap(made, image > 0) > 0.85, "an angle, which no ellipsoid resembles"


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([1, 2, 3], "six numbers"),
        ("here", "six numbers"),
        ([0, 0, 0, 5, 5, float("nan")], "not finite"),
        ([0, 0, 0, 5, 0, 5], "is empty"),
    ],
)
def test_a_box_that_cannot_be_is_refused(box, message):
    with pytest.raises(InputError, match=f"The moving box.*{message}"):
        boxes.checked_box(box, "moving")


def test_corners_may_come_in_any_order_and_are_cut_to_the_image():
    grid = make_grid((20, 20, 20), (2.0, 2.0, 2.0), center=(0, 0, 0))
    box = boxes.checked_box([5, -7, 9, -5, 7, -90], "fixed")
    np.testing.assert_array_equal(box, [[-5, -7, -90], [5, 7, 9]])
    bounds = boxes.bounds_on(grid, box, "fixed")
    np.testing.assert_allclose(bounds, [(-0.5, 14), (6, 13), (7, 12)])
    with pytest.raises(InputError, match="outside of the fixed image"):
        boxes.bounds_on(grid, box + 200, "fixed")
    with pytest.raises(InputError, match="thinner than 2 voxels"):
        boxes.bounds_on(grid, boxes.checked_box([0, 0, 0, 1, 9, 9], "fixed"), "fixed")


def corners_of(middle, edges):
    """The eight corners of a box with the ``edges`` (3, 3) around ``middle``."""
    signs = np.array([[a, b, c] for a in (-0.5, 0.5) for b in (-0.5, 0.5) for c in (-0.5, 0.5)])
    return middle + signs @ np.asarray(edges, float)


def test_a_turned_box_is_taken_along_the_axes_of_its_image():
    grid = make_grid((20, 20, 20), (2.0, 1.0, 3.0), center=(5, -3, 2), turn=(30, 10, -20))
    middle = grid.points((8.0, 9.0, 10.0))
    edges = (grid.direction * grid.spacing).T * ((4.0,), (6.0,), (8.0,))
    for order in ((0, 1, 2), (2, 0, 1)):
        box = boxes.checked_box(corners_of(middle, edges[list(order)]), "fixed")
        np.testing.assert_allclose(boxes.bounds_on(grid, box, "fixed"), [(6, 10), (6, 12), (6, 14)], atol=1e-9)
    with pytest.raises(InputError, match="not those of a box"):
        boxes.checked_box(np.random.default_rng(0).normal(size=(8, 3)), "fixed")
    with pytest.raises(InputError, match="The fixed box is empty"):
        boxes.checked_box(corners_of(middle, edges * ((1.0,), (0.0,), (1.0,))), "fixed")


def test_turned_boxes_start_from_their_centres_and_sizes():
    turn = rotation(12, -8, 5)
    fixed = corners_of(np.array([3.0, 4, 5]), np.diag([20.0, 30, 40]) @ turn.T)
    # The edges in another order: only where they lead counts.
    moving = corners_of(np.array([-7.0, 1, 2]), (np.diag([22.0, 27, 40]) @ turn.T)[[2, 0, 1]])
    start = boxes.box_start(fixed, moving)
    np.testing.assert_allclose(np.diag(affine_matrix(start))[:3], np.power((1.1, 0.9, 1), 0.6), atol=1e-9)
    np.testing.assert_allclose(start.TransformPoint((3.0, 4.0, 5.0)), (-7, 1, 2), atol=1e-9)


def test_the_box_around_a_mask_is_the_mask(grid):
    mask = np.zeros(grid.shape, np.uint8)
    mask[3:9, 4:15, 7:11] = 1
    box = boxes.checked_box(boxes.box_around(image_from_array(mask, grid)), "fixed")
    np.testing.assert_allclose(boxes.bounds_on(grid, box, "fixed"), [(2.5, 8.5), (3.5, 14.5), (6.5, 10.5)], atol=1e-9)


def test_one_box_alone_is_refused():
    assert boxes.require_boxes(None, None) is None
    with pytest.raises(InputError, match="in both images, or in none"):
        boxes.require_boxes([0, 0, 0, 9, 9, 9], None)


def test_missing_weights_are_named_before_any_work(tmp_path, monkeypatch):
    missing = replace(entry(boxes.BOX_ENCODER).weights, source="manual", page="https://example.org")
    item = replace(entry(boxes.BOX_ENCODER), weights=missing)
    monkeypatch.setattr(boxes, "entry", lambda id: item)
    monkeypatch.setattr(store, "_folder", tmp_path)
    with pytest.raises(WeightsError, match="not on this computer"):
        boxes.require_boxes([0, 0, 0, 9, 9, 9], [0, 0, 0, 9, 9, 9])


@pytest.fixture
def without_weights(monkeypatch):
    """MedSAM-Lite's encoder and decoder, as far as these tests need them, without their file."""
    monkeypatch.setattr(store, "ensure", lambda item, progress=None: ("", ""))
    monkeypatch.setattr(boxes, "load_encoder", lambda *a, **k: MeanEncoder())

    class Decoder:
        def to(self, device):
            return bright_in_box

    monkeypatch.setattr(boxes, "build_box_decoder", lambda path: Decoder())


def test_boxes_in_both_images_give_masks_and_the_start(without_weights):
    grids = make_grid(), make_grid((30, 30, 50), (3.0, 3.0, 2.0), turn=(10, 0, 5))
    shift = np.array([6.0, -4.0, 5.0])
    eggs = egg_on(grids[0], np.zeros(3)), egg_on(grids[1], shift)
    images = tuple(image_from_array(900.0 * egg.astype(np.float32), g) for egg, g in zip(eggs, grids, strict=True))
    corners = np.array([[-17.0, -13, -21], [17, 13, 21]])
    made = boxes.segment_boxes(images, (corners, corners + shift), Settings(), torch.device("cpu"))
    for mask, egg in zip(made, eggs, strict=True):
        assert overlap(sitk.GetArrayFromImage(mask) > 0, egg) > 0.9
    start = boxes.box_start(corners, corners + shift)
    np.testing.assert_allclose(start.TransformPoint((0.0, 0.0, 0.0)), shift, atol=1.0)
    assert boxes.overlap(*made, start) > 0.85 > boxes.overlap(*made, sitk.Transform(3, sitk.sitkIdentity))


def test_the_start_brings_box_to_box():
    """Centres meet; the sizes count in part, since hands err in them."""
    fixed, moving = np.array([[-10.0, 0, 5], [10, 30, 25]]), np.array([[40.0, -5, 0], [70, 25, 20]])
    start = boxes.box_start(fixed, moving)
    np.testing.assert_allclose(start.TransformPoint((0.0, 15, 15)), moving.mean(0), atol=1e-9)
    np.testing.assert_allclose(np.diag(affine_matrix(start))[:3], (1.5**0.6, 1, 1), atol=1e-9)
    centres = boxes.box_start(fixed, moving, affine=False)
    np.testing.assert_allclose(centres.TransformPoint((1.0, 14, 17)), np.add(moving.mean(0), (1, -1, 2)), atol=1e-9)
    wide = boxes.box_start(fixed, moving * 10)
    assert np.diag(affine_matrix(wide)).max() == pytest.approx(1.6), "no anatomy is ten times as large"


def test_nothing_outside_of_a_turned_box_is_taken(without_weights):
    grid = make_grid()
    ball = egg_on(grid, np.zeros(3), (30.0, 30.0, 30.0))
    image = image_from_array(900.0 * ball.astype(np.float32), grid)
    corners = corners_of(np.zeros(3), np.diag([60.0, 20.0, 20.0]) @ rotation(45).T)
    (mask,) = boxes.segment_boxes([image], [corners], Settings(), torch.device("cpu"), sides=["fixed"])
    along = grid.points(np.moveaxis(np.indices(grid.shape), 0, -1)) @ rotation(45)
    inside = (np.abs(along) < (30.0, 10.0, 10.0)).all(-1)
    found = sitk.GetArrayFromImage(mask) > 0
    assert not (found & ~inside).any() and overlap(found, inside & ball) > 0.9


def test_a_box_around_nothing_is_refused(without_weights):
    grid = make_grid()
    values = 900.0 * egg_on(grid, np.zeros(3)).astype(np.float32)
    image = image_from_array(values, grid)
    around, nothing = np.array([[-17.0, -13, -21], [17, 13, 21]]), np.array([[30.0, 30, 30], [40, 38, 38]])
    with pytest.raises(InputError, match="The moving box holds nothing"):
        boxes.segment_boxes((image, image), (around, nothing), Settings(), torch.device("cpu"))


GRID = make_grid((30, 40, 44), (2.5, 2.5, 2.5), center=(0, 0, 0))


def egg_pair(shift):
    """Two images of a body that lies still, in which an egg lies ``shift`` mm apart; its box; the eggs."""
    body, eggs = egg_on(GRID, np.zeros(3), axes=(48.0, 44.0, 34.0)), [egg_on(GRID, at) for at in (np.zeros(3), shift)]
    images = [image_from_array((250.0 * body + 650.0 * egg).astype(np.float32), GRID) for egg in eggs]
    masks = [image_from_array(egg.astype(np.uint8), GRID) for egg in eggs]
    return images, np.array([[-17.0, -13, -21], [17, 13, 21]]), masks


def test_segmented_looked_at_corrected_and_guiding(without_weights, monkeypatch):
    """What a person corrected guides as it is and needs no box; the other side is segmented."""
    monkeypatch.setattr(boxes.store, "require", lambda item: None)
    shift = np.array([18.0, 0, 0])
    images, corners, eggs = egg_pair(shift)
    settings = Settings(levels=(2,), iterations=4, search_range_mm=0)
    masks = boxes.segment_in_boxes(*images, corners, corners + shift, settings)
    still = sitk.Transform(3, sitk.sitkIdentity)
    assert min(boxes.overlap(mask, egg, still) for mask, egg in zip(masks, eggs, strict=True)) > 0.9
    corrected = sitk.Image(masks[0])
    corrected[20:24, 18:22, 14:17] = 0
    result = pipeline.register(*images, settings, fixed_box_mask=corrected, moving_box=corners + shift)
    found = [sitk.GetArrayViewFromImage(mask) for mask in (*result.box_masks, corrected, masks[1])]
    assert (found[0] == found[2]).all() and (found[1] == found[3]).all()
    assert boxes.overlap(*eggs, result.transform) > 0.8 > 0.5 > boxes.overlap(*eggs, still)


def test_only_masks_that_a_person_drew_bend_images_that_share_nothing(without_weights, monkeypatch):
    """Two images of noise: boxes put them onto each other and no further; masks drawn in both do the rest."""
    monkeypatch.setattr(boxes.store, "require", lambda item: None)
    shift, random = np.array([6.0, 0, 0]), np.random.default_rng(4)
    _, corners, eggs = egg_pair(shift)
    images = [image_from_array(random.normal(300, 60, GRID.shape).astype(np.float32), GRID) for _ in eggs]
    settings = Settings(levels=(2,), iterations=4, search_range_mm=0)
    boxed = pipeline.register(*images, settings, fixed_box=corners, moving_box=corners + shift)
    assert boxed.trust.kept == "linear"
    points = [(0.0, 0.0, 0.0), (20.0, 10.0, -15.0)]
    moved = [boxed.transform.TransformPoint(point) for point in points]
    np.testing.assert_allclose(moved, np.add(points, shift), atol=1e-3)
    masks = {"fixed_box_mask": eggs[0], "moving_box_mask": eggs[1]}
    assert pipeline.register(*images, settings, **masks).trust.kept == "after"


def test_masks_of_both_sides_need_no_weights(monkeypatch):
    monkeypatch.setattr(boxes.store, "require", None)
    assert boxes.require_boxes(None, None, "a mask", "another") == {}
    assert list(boxes.require_boxes([0, 0, 0, 9, 9, 9], None, "a mask", "another")) == ["fixed"]
    with pytest.raises(InputError, match="in both images, or in none"):
        boxes.require_boxes(None, None, "a mask", None)


def test_the_command_line_registers_by_boxes_and_writes_their_masks(without_weights, tmp_path, monkeypatch):
    """The egg lies 18 mm off and everything else in the images says that it does not."""
    monkeypatch.setattr(boxes.store, "require", lambda item: None)
    monkeypatch.setattr(commands, "require_encoders", lambda *_: None)
    shift = np.array([18.0, 0, 0])
    images, corners, _ = egg_pair(shift)
    command = ["register"]
    for side, middle, image in (("fixed", np.zeros(3), images[0]), ("moving", shift, images[1])):
        sitk.WriteImage(image, str(tmp_path / f"{side}.nii.gz"))
        command.append(str(tmp_path / f"{side}.nii.gz"))
        command += [f"--{side}-box", *(str(x) for x in (corners + middle).ravel())]
    fast = ("levels=2", "iterations=4", "search_range_mm=0")
    command += ["-e", "mind", "-o", str(tmp_path / "out"), *(part for item in fast for part in ("--set", item))]
    assert cli.main(command) == 0
    masks = {side: sitk.ReadImage(str(tmp_path / "out" / f"{side}_box_mask.nii.gz")) for side in ("fixed", "moving")}
    transform = sitk.ReadTransform(str(tmp_path / "out" / "transform.h5"))
    assert boxes.overlap(masks["fixed"], masks["moving"], transform) > 0.8
    assert boxes.overlap(masks["fixed"], masks["moving"], sitk.Transform(3, sitk.sitkIdentity)) < 0.5
    np.testing.assert_allclose(transform.TransformPoint((0.0, 0.0, 0.0)), shift, atol=3.0)


def test_the_command_line_takes_masks_that_a_person_corrected(tmp_path, monkeypatch, capsys):
    """In place of boxes and of the weights that would segment them; on the other side a box may stay."""
    images, corners, eggs = egg_pair(np.array([18.0, 0, 0]))
    files = {"fixed": images[0], "moving": images[1], "egg0": eggs[0], "egg1": eggs[1]}
    for name, image in files.items():
        sitk.WriteImage(image, str(tmp_path / f"{name}.nii.gz"))
    command = ["register", *(str(tmp_path / f"{side}.nii.gz") for side in ("fixed", "moving")), "-e", "mind"]
    for item in ("levels=2", "iterations=4", "search_range_mm=0"):
        command += ["--set", item]
    command += ["-o", str(tmp_path / "out"), "--fixed-box-mask", str(tmp_path / "egg0.nii.gz")]
    assert cli.main(command) == 2 and "--moving-box-mask" in capsys.readouterr().err
    assert cli.main([*command, "--moving-box-mask", str(tmp_path / "none.nii.gz")]) == 2
    assert "The box mask of the moving image" in capsys.readouterr().err and not (tmp_path / "out").exists()
    needed = []
    monkeypatch.setattr(commands, "require_encoders", lambda *given: needed.append(given[-1]))
    assert cli.main([*command, "--moving-box-mask", str(tmp_path / "egg1.nii.gz")]) == 0
    transform = sitk.ReadTransform(str(tmp_path / "out" / "transform.h5"))
    assert boxes.overlap(*eggs, transform) > 0.9
    written = sitk.ReadImage(str(tmp_path / "out" / "fixed_box_mask.nii.gz"))
    assert (sitk.GetArrayViewFromImage(written) == sitk.GetArrayViewFromImage(eggs[0])).all()
    monkeypatch.setattr(boxes.store, "require", lambda item: None)
    monkeypatch.setattr(pipeline.boxes, "segment_into", lambda *_: pytest.fail("here the work begins"))
    with pytest.raises(pytest.fail.Exception, match="the work begins"):
        cli.main([*command, "--moving-box", *(str(x) for x in (corners + np.array([18.0, 0, 0])).ravel())])
    assert needed == [[], ["medsam-lite"]]


def test_features_are_shown_in_the_report_though_they_took_no_part(tmp_path, monkeypatch):
    from box_worker import Textures

    monkeypatch.setattr(commands, "require_encoders", lambda *_: None)
    monkeypatch.setattr(encoding, "load_encoder", lambda *a, **k: Textures())
    monkeypatch.setattr(feature_review, "require", lambda *a: None)
    images, _, _ = egg_pair(np.array([6.0, 0, 0]))
    for side, image in zip(("fixed", "moving"), images, strict=True):
        sitk.WriteImage(image, str(tmp_path / f"{side}.nii.gz"))
    command = ["register", *(str(tmp_path / f"{side}.nii.gz") for side in ("fixed", "moving"))]
    for item in ("levels=2", "iterations=2", "search_range_mm=0", "affine=false"):
        command += ["--set", item]
    assert cli.main([*command, "-o", str(tmp_path / "plain")]) == 0
    assert cli.main([*command, "--features", "medsam-lite", "-o", str(tmp_path / "shown")]) == 0
    reports = [(tmp_path / name / "report.html").read_text(encoding="utf-8") for name in ("plain", "shown")]
    title = "The first three principal components"
    assert title not in reports[0] and title in reports[1] and "medsam-lite" in reports[1]
    fields = [sitk.ReadTransform(str(tmp_path / name / "transform.h5")) for name in ("plain", "shown")]
    assert fields[0].TransformPoint((1.0, 2.0, 3.0)) == fields[1].TransformPoint((1.0, 2.0, 3.0))
    record = json.loads((tmp_path / "shown" / "result.json").read_text(encoding="utf-8"))["record"]
    assert record["weights_sha256_shown"] == {"medsam-lite": "none"} and "medsam-lite" not in record["weights_sha256"]
    assert cli.main([*command, "--features", "medsam-lite", "--set", "deformable=false", "-o", str(tmp_path)]) == 2


def test_an_encoder_that_was_shown_can_be_asked(monkeypatch):
    from box_worker import Textures

    monkeypatch.setattr(encoding, "load_encoder", lambda *a, **k: Textures())
    monkeypatch.setattr(feature_review, "require", lambda *a: None)
    images, _, _ = egg_pair(np.array([6.0, 0, 0]))
    result = pipeline.register(*images, Settings(levels=(2,), iterations=2, search_range_mm=0))
    with pytest.raises(InputError, match="were not encoded with 'medsam-lite'"):
        result.correspondence((0.0, 0, 0), "medsam-lite")
    result.show_features("medsam-lite")
    assert set(result.features) == {"medsam-lite"} and result.feature_grid is not None
    assert result.correspondence((0.0, 0, 0), "medsam-lite").encoder == "medsam-lite"
    with pytest.raises(InputError, match="MIND has no features"):
        result.show_features("mind")
