// Features of whole volumes: MIND (encoders/mind.py), their standardisation (numerics/data_term.py), and the layout in
// which data_term.cpp reads them.

#include "common.hpp"

namespace {

// Voxels of a piece: sums are taken piece by piece, so that they do not depend on the threads.
const ptrdiff_t PIECE = 1 << 15;

int pieces(ptrdiff_t voxels) { return int((voxels + PIECE - 1) / PIECE); }

// Sum of weight * (value - origin), or of its square times the weight.
double weighted_sum(const float* values, const float* weight, float origin, bool squared, ptrdiff_t count) {
    double sum = 0.0;
    ptrdiff_t n = 0;
    for (; n + 64 <= count; n += 64) {
        Lanes8 lanes = {};
        for (int k = 0; k < 64; k += 8) {
            const Lanes8 rest = load<Lanes8>(values + n + k) - origin;
            const Lanes8 counted = rest * load<Lanes8>(weight + n + k);
            lanes += squared ? counted * rest : counted;
        }
        sum += total(lanes);
    }
    for (; n < count; n++) {
        const double rest = values[n] - origin;
        sum += weight[n] * (squared ? rest * rest : rest);
    }
    return sum;
}

// exp(-x) for x of 0 and more, to 2e-7 of itself: a power of two times a polynomial on half an octave to either side.
inline float exp_of_negative(float x) {
    x = x < 86.0f ? x : 86.0f;
    const float rounding = 12582912.0f, octaves = x * -1.44269504f, whole = (octaves + rounding) - rounding;
    // ln 2 in two parts, so that the difference is exact.
    const float r = (-x - whole * 0.693359375f) - whole * -2.12194440e-4f;
    float sum = 1.9875691500e-4f;
    sum = sum * r + 1.3981999507e-3f;
    sum = sum * r + 8.3334519073e-3f;
    sum = sum * r + 4.1665795894e-2f;
    sum = sum * r + 1.6666665459e-1f;
    sum = sum * r + 5.0000001201e-1f;
    sum = sum * r * r + r + 1.0f;
    const int32_t bits = (int32_t(whole) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return sum * power;
}

struct Mind {
    Lattice l;
    const float* padded;  // the image with a border of radius + 2 dilation
    const float* taps;    // weights of a patch along an axis, 2 radius + 1
    int radius, dilation;

    int border() const { return radius + 2 * dilation; }
    int width() const { return 2 * radius + 1; }
    ptrdiff_t across() const { return l.w + 2 * border(); }
    ptrdiff_t area() const { return (l.h + 2 * border()) * across(); }
};

// The distances of pairs of neighbours in some planes at a time.
class Slab {
public:
    static const int PLANES = 16;

    explicit Slab(const Mind& m)
        : m(m), h(m.l.h + 2 * m.dilation), w(m.l.w + 2 * m.dilation),
          rows(h + 2 * m.radius), squares(room<float>(size_t(w + 2 * m.radius))), lines(room<float>(size_t(rows) * w)),
          planes(room<float>(size_t(m.width()) * h * w)), means(room<float>(size_t(PLANES + 2 * m.dilation) * h * w)) {}
    bool failed() const { return !squares || !lines || !planes || !means; }

    // The patch mean of (I(x + move) - I(x))^2 as far as `dilation` outside of the planes from z0 to before z1.
    void measure(const int32_t* move, int z0, int z1) {
        const int d = z1 - z0 + 2 * m.dilation;
        const ptrdiff_t jump = m.dilation * (move[0] * m.area() + move[1] * m.across() + move[2]);
        const ptrdiff_t size = ptrdiff_t(h) * w;
        for (int n = 0; n < d + 2 * m.radius; n++) {
            const float* here = m.padded + (z0 + m.dilation + n) * m.area() + m.dilation * (m.across() + 1);
            for (int y = 0; y < rows; y++) {
                const float *a = here + y * m.across(), *b = a + jump;
                float* __restrict square = squares.get();
                for (int x = 0; x < w + 2 * m.radius; x++) square[x] = (b[x] - a[x]) * (b[x] - a[x]);
                weigh(square, 1, lines.get() + ptrdiff_t(y) * w, w);
            }
            for (int y = 0; y < h; y++) weigh(lines.get() + ptrdiff_t(y) * w, w, plane(n) + ptrdiff_t(y) * w, w);
            if (n < 2 * m.radius) continue;
            float* __restrict out = means.get() + (n - 2 * m.radius) * size;
            for (int k = 0; k <= 2 * m.radius; k++) {
                const float *from = plane(n - 2 * m.radius + k), tap = m.taps[k];
                for (ptrdiff_t x = 0; x < size; x++) out[x] = k ? out[x] + tap * from[x] : tap * from[x];
            }
        }
    }

    // out (depth, h, w): the mean of what was measured at both places, in dilations from each voxel.
    void read(const int32_t* one, const int32_t* other, int depth, float* out) const {
        for (int z = 0; z < depth; z++)
            for (int y = 0; y < m.l.h; y++) {
                const float *a = at(one, z, y), *b = at(other, z, y);
                float* __restrict to = out + (ptrdiff_t(z) * m.l.h + y) * m.l.w;
                for (int x = 0; x < m.l.w; x++) to[x] = 0.5f * (a[x] + b[x]);
            }
    }

private:
    float* plane(int n) const { return planes.get() + (n % m.width()) * size_t(h) * w; }

    const float* at(const int32_t* place, int z, int y) const {
        const int e = m.dilation;
        return means.get() + (ptrdiff_t(z + e + e * place[0]) * h + y + e + e * place[1]) * w + e + e * place[2];
    }

    void weigh(const float* from, ptrdiff_t step, float* __restrict out, ptrdiff_t count) const {
        const float* t = m.taps;
        if (m.radius == 1) {
            const float *a = from, *b = from + step, *c = b + step;
            for (ptrdiff_t x = 0; x < count; x++) out[x] = t[0] * a[x] + t[1] * b[x] + t[2] * c[x];
            return;
        }
        for (int k = 0; k <= 2 * m.radius; k++) {
            const float* line = from + k * step;
            for (ptrdiff_t x = 0; x < count; x++) out[x] = k ? out[x] + t[k] * line[x] : t[k] * line[x];
        }
    }

    const Mind& m;
    const int h, w, rows;
    std::unique_ptr<float[]> squares, lines, planes, means;
};

}  // namespace

// sums (channels, pieces): weight * (value - origin), or times the squared difference where `squared`. `values`
// (channels, voxels), `weight` (voxels), `origin` (channels); a piece has 32768 voxels.
KERNEL int weighted_sums(const float* values, const float* weight, const float* origin, double* sums, int64_t voxels,
                         int channels, int squared, int threads) {
    const int count = pieces(voxels);
    side_by_side(channels * count, threads, [&](int task) {
        const int c = task / count;
        const ptrdiff_t first = task % count * PIECE, n = std::min<ptrdiff_t>(PIECE, voxels - first);
        sums[task] = weighted_sum(values + c * ptrdiff_t(voxels) + first, weight + first, origin[c], squared != 0, n);
    });
    return 0;
}

// out (voxels, padded): (value - origin) * factor, channel by channel of `values` (channels, voxels), and zeros.
KERNEL int pack(const float* values, const float* origin, float factor, float* out, int64_t voxels, int channels,
                int padded, int threads) {
    side_by_side(pieces(voxels), threads, [&](int piece) {
        const ptrdiff_t first = piece * PIECE, last = std::min<ptrdiff_t>(first + PIECE, voxels);
        for (ptrdiff_t n = first; n < last; n += 8) {
            const int count = int(std::min<ptrdiff_t>(8, last - n));
            float* to = out + n * padded;
            for (int c = 0; c < padded; c++) {
                const float *from = values + c * ptrdiff_t(voxels) + n, middle = c < channels ? origin[c] : 0.0f;
                for (int k = 0; k < count; k++) to[k * padded + c] = c < channels ? (from[k] - middle) * factor : 0.0f;
            }
        }
    });
    return 0;
}

// Whether the numbers from `channels` to before `padded` of any voxel of `packed` (voxels, padded) are not zero: `found`.
KERNEL int find_padding(const float* packed, int32_t* found, int64_t voxels, int channels, int padded, int threads) {
    std::atomic<bool> any{false};
    side_by_side(pieces(voxels), threads, [&](int piece) {
        const ptrdiff_t first = piece * PIECE, last = std::min<ptrdiff_t>(first + PIECE, voxels);
        bool seen = false;
        for (ptrdiff_t n = first; n < last; n++)
            for (int c = channels; c < padded; c++) seen |= packed[n * padded + c] != 0.0f;
        if (seen) any = true;
    });
    *found = any;
    return 0;
}

// Distances of MIND: out (channels, d, h, w), each less the least of its voxel, and noise (d, h, w), their mean. A row of
// `geometry` (channels, 10) holds a channel, the move between both neighbours and the two places where the patch mean is
// read, which are averaged, in dilations; rows of one move follow each other. `padded` is the image with a border of
// radius + 2 dilation.
KERNEL int mind_distances(const float* padded, const int32_t* geometry, const float* taps, float* out, float* noise,
                          const int64_t* shape, int channels, int radius, int dilation, int threads) {
    const Mind m{Lattice(shape), padded, taps, radius, dilation};
    const ptrdiff_t all = m.l.voxels(), size = ptrdiff_t(m.l.h) * m.l.w;
    auto made = [&] { return Slab(m); };
    const int slabs = (m.l.d + Slab::PLANES - 1) / Slab::PLANES;
    const bool worked = side_by_side_with(slabs, threads, made, [&](Slab& slab, int n) {
        const int z0 = n * Slab::PLANES, z1 = std::min(z0 + Slab::PLANES, m.l.d);
        for (int row = 0; row < channels; row++) {
            const int32_t *channel = geometry + 10 * row, *move = channel + 1;
            if (!row || std::memcmp(move, move - 10, 3 * sizeof *move)) slab.measure(move, z0, z1);
            slab.read(move + 3, move + 6, z1 - z0, out + *channel * all + z0 * size);
        }
        const ptrdiff_t voxels = (z1 - z0) * size;
        for (ptrdiff_t first = z0 * size; first < z0 * size + voxels; first += 256) {
            const int count = int(std::min<ptrdiff_t>(256, z0 * size + voxels - first));
            float least[256], sum[256];
            for (int i = 0; i < count; i++) least[i] = sum[i] = out[first + i];
            for (int c = 1; c < channels; c++)
                for (int i = 0; i < count; i++) {
                    const float value = out[c * all + first + i];
                    sum[i] += value;
                    least[i] = value < least[i] ? value : least[i];
                }
            for (int c = 0; c < channels; c++)
                for (int i = 0; i < count; i++) out[c * all + first + i] -= least[i];
            for (int i = 0; i < count; i++) noise[first + i] = sum[i] / channels - least[i];
        }
    });
    return worked ? 0 : 1;
}

// values (channels, voxels) = exp(-values / noise), with the noise (voxels) between `least` and `most`.
KERNEL int mind_descriptors(float* values, const float* noise, float least, float most, int64_t voxels, int channels,
                            int threads) {
    side_by_side(pieces(voxels), threads, [&](int piece) {
        const ptrdiff_t first = piece * PIECE, last = std::min<ptrdiff_t>(first + PIECE, voxels);
        for (int c = 0; c < channels; c++) {
            float* __restrict v = values + c * ptrdiff_t(voxels);
            for (ptrdiff_t n = first; n < last; n++) {
                const float low = noise[n] > least ? noise[n] : least;
                v[n] = exp_of_negative(v[n] / (low < most ? low : most));
            }
        }
    });
    return 0;
}
