"""The working constants of the method, in one place, each with what it was measured on.

They are not settings: none of them has to be chosen for a pair. "The nine cases" are four breast MR pairs with
simulated looks and deformations, two livers, one lung, two brains and one abdomen. docs/accuracy.md names them, and
says of every constant what it was chosen on.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MethodConstants:
    """Lengths are millimetres unless said otherwise.

    Deformable stage
        node_factor: voxels of the finest level per node of the field. Finer nodes fit noise (the nine cases).
        grey_correlation: local correlation of grey values from which they join the refinement, and from which they
            count fully. Two MR sequences were seen at 0.17, one sequence at 0.46 (two brains) to 0.9.
        least_correlation: the same for the neighbourhoods of neighbourhood_mm (standard deviation of a Gaussian) of
            which a tenth correlate less: where most of what two contrasts show agrees, the rest may be opposite. Seen:
            one sequence 0.41 and more, two brains 0.2, two sequences -0.2 to -0.6.
        shading_mm: shading slower than this is taken away from bias-corrected grey values.
        shading_ratio: unexplained variance of bias-corrected grey values over that of locally normalised ones; up to
            the first they count in full, from the second not at all. Seen: two brains 0.16, a lung 0.22, livers 0.33
            and 0.45, breasts under a simulated bias field 0.43.
        membrane: (diffusion, bending) of the regulariser where bias-corrected grey values count. Seen: two brains lie
            better under it (Dice 0.848 to 0.853) and fold less, a lung lies no worse.
        tolerances: share by which an iteration must lower the loss, on coarse levels and on the finest, where one
            costs most. 0.003 on the finest was 1 to 3 % more accurate on the four breasts and took 1 to 2 s more.
        landmark_weight: curvature of a landmark on its nodes; a voxel's features have about 1.
        inconsistency_mm: inverse consistency error of the search from which a node is filled in by its neighbours (a
            breast under a simulated deformation: 0.45 to 0.41 mm).
        contradiction_mm: median inconsistency of the search from which a finer one around its field follows, of
            second_reach_mm. Seen: liver_mr_18 and a lung 1.8, the abdomen 16, the other eight up to 1.3; the livers and
            a breast in another contrast, thicker slices and askew 1.6 to 7.4. A reach of 9 mm was better than none on
            all of these by 0 to 6 %, 12 mm hardly differs, 6 mm was worse on liver_mr_18.
        error_share: millimetres of error per millimetre of posterior deviation and inconsistency: four breast pairs
            under known simulated deformations, 400 points each.
    Linear stage
        linear_voxels: size of the images that it sees, 3 to 4 mm for a head or an abdomen. linear_samples: points at
            which mutual information is taken. linear_margin_mm: around the body.
        scales: smallest and largest stretch that anatomy of two people can show.
        box_stretch: exponent on the ratio of the sizes of two boxes around one organ, since hands and masks err in the
            sizes. Chosen on the first ten prostates (ultrasound to MR; gland Dice with boxes around the true glands
            0.802 at 0, 0.848 at 0.6, 0.846 at 1; with faces off by 2.5 mm 0.774, 0.802, 0.786); the other ten: 0.855,
            0.879, 0.867 and 0.803, 0.801, 0.781.
        clear_gain: factor by which another place must match better than the upright one. sure_match: agreement of
            descriptors from which upright images are not tried in other orientations. turned_spacing: factor of the
            lattice's spacing on which those are tried. slant: degrees by which images are turned about each axis where
            right angles do not convince. straight_enough: degrees off a right-angled turn up to which descriptors are
            taken along its axes: they tell about directions (a lung turned by 30 degrees: the right place had less
            agreement than a wrong one upright). kept_agreement: share of the descriptors' agreement that a
            stage must keep. Seen on the nine cases, and on six of them turned by 12 degrees and shifted by 25 mm:
            right stages raise it.
        least_support: share of the neighbourhoods whose edges must agree better where the linear stage puts them than
            at shifted copies (`registration.trust`). Seen: the nine cases and two tumours 0.5 to 1, but for the
            abdomen of two people, 0.12; prostates of MR and ultrasound, all wrong, 0.04 to 0.12. least_cover: share of
            the bodies that must meet for images to be left as they lie. mirror_gain: factor by which a mirrored image
            must match better to be reported; seen: mirrored headers 1.02 (two brains) to 1.48 and more, right ones up
            to 0.93, a symmetric average brain about 1. mirror_hint: that from which this is looked at closely, before
            any refinement; there mirrored headers gave 0.91 and more, right ones 0.33 to 0.94. clearly_safer:
            difference in failure score from which a start replaces a result.
    Preparation
        least_seen: share of the fixed body that the moving image must show; of less, grey values are normalised over
            what both show. Brains cut to their upper 60 and 40 % (preset fast): Dice 0.714 to 0.748 and 0.633 to 0.726,
            where the uncut one has 0.770 and 0.750; images that are not cut gain nothing.
        margin_mm: of the working grid around the body. descriptor_voxels: radius in voxels within which MIND sees a
            lesion. base_gb, voxel_bytes: peak memory, measured from 96 to 512 voxels cubed. least_voxels: no coarser
            grid is taken when memory runs out.
        held_bytes: of images and features while the search runs, by voxel of the working grid.
            least_search_share: of the memory limit that the search may take in any case.
    """

    node_factor: int = 2
    grey_correlation: tuple[float, float] = (0.25, 0.4)
    least_correlation: tuple[float, float] = (0.0, 0.15)
    neighbourhood_mm: float = 16.0
    shading_mm: float = 30.0
    shading_ratio: tuple[float, float] = (0.18, 0.28)
    membrane: tuple[float, float] = (0.4, 0.05)
    tolerances: tuple[float, float] = (0.003, 0.01)
    landmark_weight: float = 200.0
    inconsistency_mm: float = 3.0
    contradiction_mm: float = 1.5
    second_reach_mm: float = 9.0
    error_share: float = 0.35
    linear_voxels: int = 120_000
    linear_samples: int = 40_000
    linear_margin_mm: float = 12.0
    scales: tuple[float, float] = (0.6, 1.6)
    box_stretch: float = 0.6
    clear_gain: float = 1.15
    sure_match: float = 0.5
    turned_spacing: float = 1.5
    slant: float = 24.0
    straight_enough: float = 10.0
    kept_agreement: float = 0.995
    least_support: float = 0.15
    least_cover: float = 0.3
    mirror_gain: float = 1.01
    mirror_hint: float = 0.88
    clearly_safer: float = 0.15
    least_seen: float = 0.9
    margin_mm: float = 8.0
    descriptor_voxels: int = 3
    base_gb: float = 0.6
    voxel_bytes: int = 600
    least_voxels: int = 200_000
    held_bytes: int = 200
    least_search_share: float = 0.25


METHOD = MethodConstants()

# The two images, as arguments and attributes name them.
SIDES = ("fixed", "moving")
