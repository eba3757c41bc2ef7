"""MIND-SSC against its definition, computed term by term, and its promises."""

import itertools

import numpy as np
import pytest
import torch
from FoundationRegLib.encoders import mind
from FoundationRegLib.encoders.base import VolumeEncoder
from FoundationRegLib.encoders.loading import load_encoder
from FoundationRegLib.encoders.mind import MIRRORED, PAIRS, Mind, binomial_mean, box_mean
from scipy import ndimage, special


def by_definition(image, radius, dilation, binomial=False, couples=()):
    """Heinrich 2013, equations 2 to 4, term by term; the image goes on beyond its border as at its border.

    With ``couples``, distances of these pairs of neighbours are averaged with those on the voxel's other side.
    """
    border = radius + dilation
    padded = np.pad(image.astype(np.float64), border, mode="edge")

    def moved(offset):
        return padded[tuple(slice(border + o, border + o + n) for o, n in zip(offset, image.shape, strict=True))]

    box = np.array(list(itertools.product(range(-radius, radius + 1), repeat=3)))
    share = special.binom(2 * radius, radius + box).prod(1) if binomial else np.ones(len(box))

    def distance(p, q):
        p, q = dilation * np.array(p), dilation * np.array(q)
        return np.average([(moved(y + p) - moved(y + q)) ** 2 for y in box], 0, share)

    if couples:
        distances = np.stack([(distance(p, q) + distance(-np.array(p), -np.array(q))) / 2 for p, q in couples])
    else:
        distances = np.stack([distance(p, q) for p, q in PAIRS])
    distances -= distances.min(0)
    variance = distances.mean(0)
    variance = np.clip(variance, 0.001 * variance.mean(), 1000 * variance.mean())
    return np.exp(-distances / variance)


def test_mirrored_channels_come_from_the_means_of_mirrored_distances():
    """Six channels: each pair's distance averaged with that of its mirror image, before anything is exponentiated."""
    image = np.random.default_rng(1).random((7, 9, 8)).astype(np.float32)
    turned = Mind(mirrored=True)
    found = turned(torch.from_numpy(image)[None, None])[0].numpy()
    expected = by_definition(image, 1, 2, couples=MIRRORED)
    assert found.shape == (6, *image.shape) and turned.channels == 6
    assert np.abs(found - expected).max() < 1e-4
    # Even: an image seen in a mirror at a point has the descriptors of that point.
    flipped = turned(torch.from_numpy(image[::-1, ::-1, ::-1].copy())[None, None])[0].numpy()
    assert np.abs(flipped[:, ::-1, ::-1, ::-1] - found).max() < 1e-4


@pytest.mark.parametrize("binomial", [False, True])
@pytest.mark.parametrize(("radius", "dilation"), [(1, 2), (1, 1), (3, 2), (0, 2)])
def test_every_voxel_has_the_value_of_the_definition(radius, dilation, binomial):
    image = np.random.default_rng(0).random((7, 9, 8)).astype(np.float32)
    expected = by_definition(image, radius, dilation, binomial)
    result = Mind(radius=radius, dilation=dilation, binomial=binomial)(torch.from_numpy(image)[None, None])
    assert result.shape == (1, 12, 7, 9, 8) and result.dtype == torch.float32
    assert np.abs(result[0].numpy() - expected).max() < 1e-4


def test_the_twelve_pairs_are_the_edges_of_the_octahedron():
    assert len(set(map(frozenset, PAIRS))) == 12
    assert all(np.dot(p, q) == 0 for p, q in PAIRS)


def test_slabs_change_nothing(monkeypatch):
    image = torch.rand(1, 1, 13, 8, 9, generator=torch.Generator().manual_seed(0))
    whole = Mind()(image)
    monkeypatch.setattr(mind, "_SLAB_VALUES", 3 * 8 * 9)
    assert torch.allclose(Mind()(image), whole, atol=1e-6)


def test_the_box_mean_is_that_of_average_pooling():
    values = torch.rand(9, 10, 11, dtype=torch.float64)
    expected = torch.nn.functional.avg_pool3d(values[None, None], 5, stride=1)[0, 0]
    assert torch.allclose(box_mean(values, 2), expected)


def test_the_bell_mean_is_that_of_binomial_filters():
    values = np.random.default_rng(0).random((9, 10, 11))
    expected = values
    for axis in range(3):
        expected = ndimage.correlate1d(expected, np.array([1, 4, 6, 4, 1]) / 16, axis)
    np.testing.assert_allclose(binomial_mean(torch.from_numpy(values), 2).numpy(), expected[2:-2, 2:-2, 2:-2])


def test_contrast_brightness_and_inversion_do_not_matter():
    image = torch.rand(1, 1, 9, 10, 11, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(Mind()(image), Mind()(0.9 - 0.5 * image), atol=1e-3)


def test_a_constant_image_gives_ones_and_a_single_slice_works():
    assert torch.equal(Mind()(torch.full((1, 1, 4, 5, 6), 0.3)), torch.ones(1, 12, 4, 5, 6))
    flat = Mind()(torch.rand(1, 1, 1, 20, 20))
    assert flat.shape == (1, 12, 1, 20, 20) and torch.isfinite(flat).all()


def test_the_catalogue_has_it_without_weights():
    encoder = load_encoder("mind")
    assert isinstance(encoder, VolumeEncoder) and encoder.radius == 1 and encoder.dilation == 1
    assert encoder.mean is binomial_mean and encoder.channels == 6 and load_encoder("mind-wide").mean is box_mean
    assert load_encoder("mind-wide").radius == 3
