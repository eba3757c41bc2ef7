// Volumes and displacement fields between their voxels (numerics/sampling.py and numerics/fields.py).

#include "common.hpp"

namespace {

// Places that are worked out at a time.
const int GROUP = 512;

// Where a group of places lies in a volume.
struct Group {
    int32_t corner[GROUP];
    float share_z[GROUP], share_y[GROUP], share_x[GROUP];

    // Places n -> (at_z(n), at_y(n), at_x(n)) in voxels.
    template <class Z, class Y, class X>
    void find(const Lattice& l, int count, const Z& at_z, const Y& at_y, const X& at_x) {
        const int d = l.d, h = l.h, w = l.w;
        for (int n = 0; n < count; n++) {
            const Place a = place_on(at_z(n), d), b = place_on(at_y(n), h), c = place_on(at_x(n), w);
            corner[n] = (a.first * h + b.first) * w + c.first;
            share_z[n] = a.share;
            share_y[n] = b.share;
            share_x[n] = c.share;
        }
    }

    // Values of one channel there.
    void read(const Lattice& l, const float* channel, float* __restrict out, int count) const {
        const ptrdiff_t sz = l.step_z(), sy = l.step_y(), sx = l.step_x();
        for (int n = 0; n < count; n++)
            out[n] = trilinear<float>(channel + corner[n], sz, sy, sx, share_z[n], share_y[n], share_x[n]);
    }
};

// Vectors of four, of which three count, for a displacement in voxels.
struct Flow {
    Lattice l;
    const float* from;
    float* to;

    // to = addition * from + from at x + factor * from(x), for row (z, y).
    void row(int z, int y, float factor, float addition, Group& group) const {
        const ptrdiff_t first = l.index(z, y, 0), sz = 4 * l.step_z(), sy = 4 * l.step_y(), sx = 4 * l.step_x();
        float moved[3][GROUP];
        for (int start = 0; start < l.w; start += GROUP) {
            const int count = std::min(GROUP, l.w - start);
            const float* u = from + 4 * (first + start);
            for (int n = 0; n < count; n++)
                for (int c = 0; c < 3; c++) moved[c][n] = factor * u[4 * n + c];
            group.find(
                l, count, [&](int n) { return z + moved[0][n]; }, [&](int n) { return y + moved[1][n]; },
                [&](int n) { return (start + n) + moved[2][n]; });
            float* out = to + 4 * (first + start);
            for (int n = 0; n < count; n++) {
                const float* corner = from + 4 * ptrdiff_t(group.corner[n]);
                const Lanes4 there = trilinear<Lanes4>(corner, sz, sy, sx, group.share_z[n], group.share_y[n],
                                                       group.share_x[n]);
                store(out + 4 * n, load<Lanes4>(u + 4 * n) * addition + there);
            }
        }
    }

    void run(float factor, float addition, int threads) const {
        side_by_side(l.d, threads, [&](int z) {
            Group group;
            for (int y = 0; y < l.h; y++) row(z, y, factor, addition, group);
        });
    }
};

}  // namespace

// out (channels, places): `volume` (channels, d, h, w) at `grid` (places, 3: x, y, z from -1 to 1 between the outer
// voxel centres), its edge outside; the nearest voxel's value or the trilinear one.
KERNEL int sample(const float* volume, const float* grid, float* out, const int64_t* shape, int64_t places,
                  int channels, int nearest, int threads) {
    const Lattice l(shape);
    const float to_z = 0.5f * (l.d - 1), to_y = 0.5f * (l.h - 1), to_x = 0.5f * (l.w - 1);
    side_by_side(int((places + GROUP - 1) / GROUP), threads, [&](int g) {
        const ptrdiff_t first = ptrdiff_t(g) * GROUP;
        const int count = int(std::min<ptrdiff_t>(GROUP, places - first));
        const float* at = grid + 3 * first;
        if (nearest) {
            int32_t index[GROUP];
            for (int n = 0; n < count; n++) {
                const int z = nearest_on((at[3 * n + 2] + 1.0f) * to_z, l.d);
                const int y = nearest_on((at[3 * n + 1] + 1.0f) * to_y, l.h);
                index[n] = (z * l.h + y) * l.w + nearest_on((at[3 * n] + 1.0f) * to_x, l.w);
            }
            for (int c = 0; c < channels; c++)
                for (int n = 0; n < count; n++) out[c * places + first + n] = volume[c * l.voxels() + index[n]];
            return;
        }
        Group group;
        group.find(
            l, count, [&](int n) { return (at[3 * n + 2] + 1.0f) * to_z; },
            [&](int n) { return (at[3 * n + 1] + 1.0f) * to_y; }, [&](int n) { return (at[3 * n] + 1.0f) * to_x; });
        for (int c = 0; c < channels; c++)
            group.read(l, volume + c * l.voxels(), out + c * places + first, count);
    });
    return 0;
}

// out (channels, lattice): `volume` (channels, d, h, w) taken at x + displacement(x) / spacing, all on one lattice.
// `displacement` (3, d, h, w); `per_voxel`: voxels per its unit along z, y, x.
KERNEL int warp(const float* volume, const float* displacement, float* out, const int64_t* shape, float per_voxel_z,
                float per_voxel_y, float per_voxel_x, int channels, int threads) {
    const Lattice l(shape);
    const ptrdiff_t all = l.voxels();
    side_by_side(l.d, threads, [&](int z) {
        Group group;
        for (int y = 0; y < l.h; y++)
            for (int start = 0; start < l.w; start += GROUP) {
                const int count = std::min(GROUP, l.w - start);
                const ptrdiff_t first = l.index(z, y, start);
                const float* u = displacement + first;
                group.find(
                    l, count, [&](int n) { return z + u[n] * per_voxel_z; },
                    [&](int n) { return y + u[all + n] * per_voxel_y; },
                    [&](int n) { return (start + n) + u[2 * all + n] * per_voxel_x; });
                for (int c = 0; c < channels; c++) group.read(l, volume + c * all, out + c * all + first, count);
            }
    });
    return 0;
}

// out (3, d, h, w): the displacement after one unit of time along `velocity`, by a midpoint step over 1 / 2^steps of it
// and that many squarings. `unit`: of both, per voxel along z, y, x.
KERNEL int exponential(const float* velocity, float* out, const int64_t* shape, float unit_z, float unit_y,
                       float unit_x, int steps, int threads) {
    const Lattice l(shape);
    const ptrdiff_t all = l.voxels();
    const float unit[3] = {unit_z, unit_y, unit_x}, part = std::ldexp(1.0f, -steps);
    auto one = room<float>(4 * size_t(all)), other = room<float>(4 * size_t(all));
    if (!one || !other) return 1;
    side_by_side(l.d, threads, [&](int z) {
        const ptrdiff_t first = l.index(z, 0, 0), count = ptrdiff_t(l.h) * l.w;
        for (ptrdiff_t n = first; n < first + count; n++) {
            for (int c = 0; c < 3; c++) one[4 * n + c] = velocity[c * all + n] / unit[c] * part;
            one[4 * n + 3] = 0.0f;
        }
    });
    Flow{l, one.get(), other.get()}.run(0.5f, 0.0f, threads);
    for (int n = 0; n < steps; n++) {
        one.swap(other);
        Flow{l, one.get(), other.get()}.run(1.0f, 1.0f, threads);
    }
    side_by_side(l.d, threads, [&](int z) {
        const ptrdiff_t first = l.index(z, 0, 0), count = ptrdiff_t(l.h) * l.w;
        for (int c = 0; c < 3; c++)
            for (ptrdiff_t n = first; n < first + count; n++) out[c * all + n] = other[4 * n + c] * unit[c];
    });
    return 0;
}

// out (channels, ceil(d / 2), ceil(h / 2), ceil(w / 2)): means over blocks of 2 voxels of `values` (channels, d, h, w); an
// odd border voxel is repeated outwards.
KERNEL int halve(const float* values, float* out, const int64_t* shape, int channels, int threads) {
    const Lattice l(shape);
    const int d = (l.d + 1) / 2, h = (l.h + 1) / 2, w = (l.w + 1) / 2;
    side_by_side(channels * d, ptrdiff_t(channels) * l.voxels() < 50000 ? 1 : threads, [&](int task) {
        const int z = task % d;
        const float* channel = values + task / d * l.voxels();
        for (int y = 0; y < h; y++) {
            const float* rows[4];
            for (int n = 0; n < 4; n++)
                rows[n] = channel + l.index(std::min(2 * z + n / 2, l.d - 1), std::min(2 * y + n % 2, l.h - 1), 0);
            float* __restrict to = out + (ptrdiff_t(task) * h + y) * w;
            for (int x = 0; x < l.w / 2; x++) {
                float sum = 0.0f;
                for (int n = 0; n < 4; n++) sum += rows[n][2 * x] + rows[n][2 * x + 1];
                to[x] = 0.125f * sum;
            }
            if (l.w % 2) {
                const int x = l.w - 1;
                to[w - 1] = 0.25f * ((rows[0][x] + rows[1][x]) + (rows[2][x] + rows[3][x]));
            }
        }
    });
    return 0;
}
