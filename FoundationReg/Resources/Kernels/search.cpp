// The discrete search: costs of candidate displacements, and the best candidate of each node (numerics/search.py), and
// the local mean that both and others need.

#include "common.hpp"

namespace {

// The index in 0..count-1 that `n`, at most two beyond the ends, is mirrored to. Two means over three nodes with
// repeated borders are one over five with the weights 1 2 3 2 1 and mirrored borders.
int mirrored(int n, int count) {
    n = n < 0 ? -1 - n : n;
    n = n >= count ? 2 * count - 1 - n : n;
    return std::clamp(n, 0, count - 1);
}

// `count` must be whole vectors.
inline void five(const float* a, const float* b, const float* c, const float* d, const float* e, float* out,
                 ptrdiff_t count) {
    for (ptrdiff_t n = 0; n < count; n += 8) {
        const Lanes8 near = load<Lanes8>(b + n) + load<Lanes8>(d + n), far = load<Lanes8>(a + n) + load<Lanes8>(e + n);
        store(out + n, 3.0f * load<Lanes8>(c + n) + (2.0f * near + far));
    }
}

// `count` rounded up to whole vectors.
inline int whole_vectors(int count) { return (count + 7) / 8 * 8; }

// A copy of `from` (rows, width) whose rows are `across` long, zeros behind their ends.
std::unique_ptr<float[]> widened(const float* from, ptrdiff_t rows, int width, int across) {
    auto to = room<float>(size_t(rows) * across);
    for (ptrdiff_t y = 0; to && y < rows; y++) {
        std::copy_n(from + y * width, width, to.get() + y * across);
        std::fill_n(to.get() + y * across + width, across - width, 0.0f);
    }
    return to;
}

// The costs of some candidates at a time, plane by plane, so that the features of a plane are read from memory once for
// all of them. Rows are held in whole vectors, so that no loop has an odd rest.
class Costs {
public:
    static const int TOGETHER = 8;

    struct Problem {
        Lattice l, padded;
        // fixed (channels, d, h, across), weight (d, h, across); moving and energy end with 8 numbers more than they
        // have, since whole vectors are read.
        const float *fixed, *moving, *energy, *weight, *factor;
        int channels;
    };

    explicit Costs(const Problem& p)
        : p(p), l(p.l), across(whole_vectors(l.w)), area(ptrdiff_t(l.h) * across),
          raw(room<float>(size_t(l.h) * (across + 4))), plane(room<float>(size_t(area))),
          ring(room<float>(size_t(TOGETHER) * 5 * area)), line(room<float>(across)) {}
    bool failed() const { return !raw || !plane || !ring || !line; }

    // Costs `out` (count, d, h, w) of at most TOGETHER candidates.
    void run(const int32_t* offsets, int count, float* out) {
        for (int z = 0; z < l.d + 2; z++)
            for (int k = 0; k < count; k++) {
                if (z < l.d) smooth_plane(z, offsets + 3 * k, held(k, z));
                if (z >= 2) finish_plane(z - 2, k, out + k * l.voxels());
            }
    }

private:
    float* held(int k, int z) const { return ring.get() + (ptrdiff_t(k) * 5 + z % 5) * area; }
    float* raw_row(int y) const { return raw.get() + ptrdiff_t(y) * (across + 4); }

    // Plane z of a candidate, smoothed twice along y and x.
    void smooth_plane(int z, const int32_t* offset, float* out) {
        const int lead[3] = {(p.padded.d - l.d) / 2, (p.padded.h - l.h) / 2, (p.padded.w - l.w) / 2};
        for (int y = 0; y < l.h; y++) {
            const ptrdiff_t there = p.padded.index(z + lead[0] + offset[0], y + lead[1] + offset[1], lead[2] + offset[2]);
            difference((ptrdiff_t(z) * l.h + y) * across, there, raw_row(y) + 2);
        }
        // Not row by row: a processor waits where it reads across what it has written just before.
        for (int y = 0; y < l.h; y++) along_row(raw_row(y), plane.get() + y * across);
        for (int y = 0; y < l.h; y++) {
            auto row = [&](int n) { return plane.get() + ptrdiff_t(mirrored(y + n, l.h)) * across; };
            if (l.h > 1)
                five(row(-2), row(-1), row(0), row(1), row(2), out + y * across, across);
            else
                std::copy_n(row(0), across, out);
        }
    }

    // (energy - 2 fixed . moving) * weight of one row, which begins `here` in the lattice and `there` in the padded one.
    void difference(ptrdiff_t here, ptrdiff_t there, float* out) const {
        const ptrdiff_t all = area * l.d, padded = p.padded.voxels();
        for (int x = 0; x < across; x += 8) {
            Lanes8 sum = {};
            const float *f = p.fixed + here + x, *m = p.moving + there + x;
            for (int c = 0; c < p.channels; c++, f += all, m += padded) sum += load<Lanes8>(f) * load<Lanes8>(m);
            const Lanes8 rest = load<Lanes8>(p.energy + there + x) - (sum + sum);
            store(out + x, rest * load<Lanes8>(p.weight + here + x));
        }
    }

    // `r` has two numbers before and two behind the row, which are filled.
    void along_row(float* r, float* to) const {
        if (l.w == 1) {
            std::copy_n(r + 2, across, to);
            return;
        }
        const float ends[4] = {r[2 + mirrored(-2, l.w)], r[2 + mirrored(-1, l.w)], r[2 + mirrored(l.w, l.w)],
                               r[2 + mirrored(l.w + 1, l.w)]};
        r[0] = ends[0];
        r[1] = ends[1];
        r[l.w + 2] = ends[2];
        r[l.w + 3] = ends[3];
        five(r, r + 1, r + 2, r + 3, r + 4, to, across);
    }

    // Plane z of candidate k, smoothed along z too and over what counts there.
    void finish_plane(int z, int k, float* out) const {
        const float mean = 1.0f / ((l.d > 1 ? 9.0f : 1.0f) * (l.h > 1 ? 9.0f : 1.0f) * (l.w > 1 ? 9.0f : 1.0f));
        for (int y = 0; y < l.h; y++) {
            auto at = [&](int n) { return held(k, mirrored(z + n, l.d)) + y * across; };
            const float* smoothed = at(0);
            if (l.d > 1) {
                five(at(-2), at(-1), at(0), at(1), at(2), line.get(), across);
                smoothed = line.get();
            }
            const ptrdiff_t row = l.index(z, y, 0);
            for (int x = 0; x < l.w; x++) out[row + x] = smoothed[x] * mean * p.factor[row + x];
        }
    }

    const Problem& p;
    const Lattice l;
    const int across;
    const ptrdiff_t area;
    std::unique_ptr<float[]> raw, plane, ring, line;
};

// One smoothing along an axis: out = low + here + high.
inline void three(const float* low, const float* here, const float* high, float* __restrict out, ptrdiff_t count) {
    for (ptrdiff_t n = 0; n < count; n++) out[n] = low[n] + high[n] + here[n];
}

class Smoothed {
public:
    Smoothed(Lattice l) : l(l), across(room<float>(size_t(l.h) * l.w)), planes(room<float>(3 * size_t(l.h) * l.w)) {}
    bool failed() const { return !across || !planes; }

    // Planes z0 to before z1 of the mean of `volume`.
    void run(const float* volume, float* out, int z0, int z1) {
        const ptrdiff_t area = ptrdiff_t(l.h) * l.w;
        const float share = 1.0f / ((l.d > 1 ? 3 : 1) * (l.h > 1 ? 3 : 1) * (l.w > 1 ? 3 : 1));
        for (int z = std::max(z0 - 1, 0); z <= z0; z++) flat(volume + z * area, plane(z));
        for (int z = z0; z < z1; z++) {
            if (z + 1 < l.d) flat(volume + (z + 1) * area, plane(z + 1));
            float* to = out + z * area;
            if (l.d > 1)
                three(plane(std::max(z - 1, 0)), plane(z), plane(std::min(z + 1, l.d - 1)), to, area);
            else
                std::copy_n(plane(z), area, to);
            for (ptrdiff_t n = 0; n < area; n++) to[n] *= share;
        }
    }

private:
    float* plane(int z) const { return planes.get() + (z % 3) * size_t(l.h) * l.w; }

    void flat(const float* from, float* to) {
        const ptrdiff_t w = l.w;
        for (int y = 0; y < l.h; y++) {
            const float* row = from + y * w;
            float* sums = across.get() + y * w;
            if (w == 1) {
                sums[0] = row[0];
                continue;
            }
            three(row, row + 1, row + 2, sums + 1, w - 2);
            sums[0] = row[0] + row[1] + row[0];
            sums[w - 1] = row[w - 1] + row[w - 2] + row[w - 1];
        }
        for (int y = 0; y < l.h; y++) {
            const float* row = across.get() + y * w;
            if (l.h > 1)
                three(y ? row - w : row, row, y + 1 < l.h ? row + w : row, to + y * w, w);
            else
                std::copy_n(row, w, to);
        }
    }
    const Lattice l;
    std::unique_ptr<float[]> across, planes;
};

// Nodes that are looked at together for their best candidate.
const int GROUP = 256;

}  // namespace

// Means over 3 nodes along each axis, the border repeated outwards, of `count` volumes (d, h, w).
KERNEL int smooth(const float* volumes, float* out, const int64_t* shape, int count, int threads) {
    const Lattice l(shape);
    const int deep = 16, slabs = (l.d + deep - 1) / deep;
    auto made = [&] { return Smoothed(l); };
    const int used = l.voxels() * count < 20000 ? 1 : threads;
    const bool worked = side_by_side_with(count * slabs, used, made, [&](Smoothed& smoothed, int n) {
        const ptrdiff_t first = n / slabs * l.voxels();
        const int z0 = n % slabs * deep;
        smoothed.run(volumes + first, out + first, z0, std::min(z0 + deep, l.d));
    });
    return worked ? 0 : 1;
}

// cost (count, d, h, w): (energy - 2 fixed . moving) * weight at each candidate, smoothed twice, over `share`. `moving`
// (channels, d + 2 reach, ...) and its `energy` reach as far beyond the lattice as the `offsets` (count, 3) do.
KERNEL int candidate_costs(const float* fixed, const float* moving, const float* energy, const int32_t* offsets,
                           const float* weight, const float* share, float* cost, const int64_t* shape,
                           const int64_t* padded_shape, int channels, int count, int threads) {
    const Lattice l(shape), padded(padded_shape);
    const int across = whole_vectors(l.w);
    const ptrdiff_t rows = ptrdiff_t(l.d) * l.h;
    auto own = widened(fixed, channels * rows, l.w, across), counted = widened(weight, rows, l.w, across);
    auto other = room<float>(size_t(channels) * padded.voxels() + 8), power = room<float>(size_t(padded.voxels()) + 8);
    auto factor = room<float>(size_t(l.voxels()));
    if (!own || !counted || !other || !power || !factor) return 1;
    std::fill_n(std::copy_n(moving, channels * padded.voxels(), other.get()), 8, 0.0f);
    std::fill_n(std::copy_n(energy, padded.voxels(), power.get()), 8, 0.0f);
    for (ptrdiff_t n = 0; n < l.voxels(); n++) factor[n] = 1.0f / share[n];
    const Costs::Problem problem{l,           padded,        own.get(), other.get(),
                                 power.get(), counted.get(), factor.get(), channels};
    const int groups = (count + Costs::TOGETHER - 1) / Costs::TOGETHER;
    auto made = [&] { return Costs(problem); };
    const bool worked = side_by_side_with(groups, threads, made, [&](Costs& costs, int g) {
        const ptrdiff_t first = ptrdiff_t(g) * Costs::TOGETHER;
        const int some = int(std::min<ptrdiff_t>(Costs::TOGETHER, count - first));
        costs.run(offsets + 3 * first, some, cost + first * l.voxels());
    });
    return worked ? 0 : 1;
}

// The least cost of each node and the mean of what its candidates cost more.
KERNEL int cost_range(const float* cost, float* least, float* mean, int64_t nodes, int count, int threads) {
    const int groups = int((nodes + GROUP - 1) / GROUP);
    side_by_side(groups, threads, [&](int g) {
        const ptrdiff_t first = ptrdiff_t(g) * GROUP;
        const int n = int(std::min<ptrdiff_t>(GROUP, nodes - first));
        float low[GROUP], sum[GROUP];
        for (int i = 0; i < n; i++) low[i] = sum[i] = cost[first + i];
        for (int k = 1; k < count; k++) {
            const float* row = cost + k * ptrdiff_t(nodes) + first;
            for (int i = 0; i < n; i++) {
                sum[i] += row[i];
                low[i] = row[i] < low[i] ? row[i] : low[i];
            }
        }
        for (int i = 0; i < n; i++) {
            least[first + i] = low[i];
            mean[first + i] = sum[i] / count - low[i];
        }
    });
    return 0;
}

// cost = (cost - least) * factor, in place.
KERNEL int scale_costs(float* cost, const float* least, float factor, int64_t nodes, int count, int threads) {
    side_by_side(count, threads, [&](int k) {
        float* row = cost + k * ptrdiff_t(nodes);
        for (ptrdiff_t n = 0; n < nodes; n++) row[n] = (row[n] - least[n]) * factor;
    });
    return 0;
}

// field (3, nodes): at each node where `active` is not 0 the candidate with the least cost plus `strength` times its
// squared distance from what the field was; the first of equal ones.
KERNEL int choose_candidates(const float* cost, const float* offsets, const uint8_t* active, float* field,
                             float strength, int64_t nodes, int count, int threads) {
    const int groups = int((nodes + GROUP - 1) / GROUP);
    side_by_side(groups, threads, [&](int g) {
        const ptrdiff_t first = ptrdiff_t(g) * GROUP;
        const int n = int(std::min<ptrdiff_t>(GROUP, nodes - first));
        if (std::none_of(active + first, active + first + n, [](uint8_t a) { return a != 0; })) return;
        float least[GROUP], to_z[GROUP], to_y[GROUP], to_x[GROUP];
        int32_t best[GROUP];
        for (int i = 0; i < n; i++) {
            least[i] = INFINITY;
            best[i] = 0;
            to_z[i] = -2.0f * strength * field[first + i];
            to_y[i] = -2.0f * strength * field[nodes + first + i];
            to_x[i] = -2.0f * strength * field[2 * nodes + first + i];
        }
        for (int k = 0; k < count; k++) {
            const float *row = cost + k * ptrdiff_t(nodes) + first, *o = offsets + 3 * ptrdiff_t(k);
            const float oz = o[0], oy = o[1], ox = o[2], squared = strength * (oz * oz + oy * oy + ox * ox);
            for (int i = 0; i < n; i++) {
                const float value = row[i] + (squared + to_z[i] * oz + to_y[i] * oy + to_x[i] * ox);
                best[i] = value < least[i] ? k : best[i];
                least[i] = value < least[i] ? value : least[i];
            }
        }
        for (int i = 0; i < n; i++)
            for (int c = 0; c < 3 && active[first + i]; c++) field[c * nodes + first + i] = offsets[3 * best[i] + c];
    });
    return 0;
}
