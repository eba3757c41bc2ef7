// Mutual information of points of one image and the volume they are moved into, with its slopes by the motion
// (numerics/mutual_information.py says what is worked out).
//
// One pass over the points reads the volume and fills joint histograms, one for each piece of them; a second one
// follows the slopes back from the histogram to the motion.

#include "common.hpp"

namespace {

const int64_t PIECE = 4096;
// The window of a grey value reaches over so many bins: as many but one stand empty or half empty around them.
const int REACH = 4;

struct Points {
    const float *offsets, *volume;
    const int32_t* rows;
    const Lattice lattice;
    const double* motion;  // (3, 4), to continuous indices x, y, z
    const int64_t count;
    const int bins, columns;
    // By point: the first bin of its window or -1 where it leaves the volume, the place within a bin, and the slopes
    // of the grey value along x, y and z.
    int32_t* first;
    float *share, *slopes;
};

// A place on an axis as of `place_on`, and whether the value changes there.
struct Slope {
    Place place;
    float changes;
};

inline Slope slope_on(float at, int count) {
    return {place_on(at, count), at > 0.0f && at < float(count - 1) ? 1.0f : 0.0f};
}

// Looks up points `from` to before `to` and adds their windows to `histogram`; how many fall inside of the volume.
int64_t look_up(const Points& p, int64_t from, int64_t to, float* histogram) {
    const Lattice& l = p.lattice;
    const ptrdiff_t sz = l.step_z(), sy = l.step_y(), sx = l.step_x();
    const float size[3] = {l.w - 0.5f, l.h - 0.5f, l.d - 0.5f};
    float m[12];
    for (int n = 0; n < 12; n++) m[n] = float(p.motion[n]);
    int64_t inside = 0;
    for (int64_t n = from; n < to; n++) {
        const float a = p.offsets[3 * n], b = p.offsets[3 * n + 1], c = p.offsets[3 * n + 2];
        const float x = m[0] * a + m[1] * b + m[2] * c + m[3], y = m[4] * a + m[5] * b + m[6] * c + m[7],
                    z = m[8] * a + m[9] * b + m[10] * c + m[11];
        p.first[n] = -1;
        // Written so that what is not a number lies outside.
        const bool within = x > -0.5f && y > -0.5f && z > -0.5f && x < size[0] && y < size[1] && z < size[2];
        if (!within) continue;
        inside++;
        const Slope u = slope_on(x, l.w), v = slope_on(y, l.h), w = slope_on(z, l.d);
        const float* corner = p.volume + l.index(w.place.first, v.place.first, u.place.first);
        const float tx = u.place.share, ty = v.place.share, tz = w.place.share;
        const float *e = corner + sy, *f = corner + sz, *g = corner + sz + sy;
        // Values along x, at both ends of it in y, and at both ends of these in z.
        const float d0 = corner[sx] - corner[0], d1 = e[sx] - e[0], d2 = f[sx] - f[0], d3 = g[sx] - g[0];
        const float c0 = corner[0] + tx * d0, c1 = e[0] + tx * d1, c2 = f[0] + tx * d2, c3 = g[0] + tx * d3;
        const float low = mixed(c0, c1, ty), high = mixed(c2, c3, ty), value = mixed(low, high, tz);
        const float unclipped = value >= 0.0f && value <= 1.0f ? 1.0f : 0.0f;
        p.slopes[3 * n] = unclipped * u.changes * mixed(mixed(d0, d1, ty), mixed(d2, d3, ty), tz);
        p.slopes[3 * n + 1] = unclipped * v.changes * mixed(c1 - c0, c3 - c2, tz);
        p.slopes[3 * n + 2] = unclipped * w.changes * (high - low);
        const float at = std::min(std::max(value, 0.0f), 1.0f) * float(p.bins - 1);
        const int bin = int(at);
        const float t = at - float(bin), s = 1 - t;
        p.share[n] = t;
        p.first[n] = p.rows[n] * p.columns + bin;
        const float window[REACH] = {s * s * s, (3 * t - 6) * t * t + 4, ((3 - 3 * t) * t + 3) * t + 1, t * t * t};
        float* joint = histogram + p.first[n];
        store(joint, load<Lanes4>(joint) + load<Lanes4>(window));
    }
    return inside;
}

// The mutual information of `joint` (bins, columns), which adds up to 1, and into `slopes` how it changes with each entry.
double information(const double* joint, int bins, int columns, double* slopes) {
    const double least = 1e-12;
    std::vector<double> of_row(bins, 0.0), of_column(columns, 0.0), by_row(bins, 0.0), by_column(columns, 0.0);
    for (int r = 0; r < bins; r++)
        for (int c = 0; c < columns; c++) {
            of_row[r] += joint[r * columns + c];
            of_column[c] += joint[r * columns + c];
        }
    double found = 0;
    for (int r = 0; r < bins; r++)
        for (int c = 0; c < columns; c++) {
            const double own = joint[r * columns + c], independent = of_row[r] * of_column[c];
            const double ratio = std::log(own + least) - std::log(independent + least);
            found += own * ratio;
            slopes[r * columns + c] = ratio + own / (own + least);
            by_row[r] += own * of_column[c] / (independent + least);
            by_column[c] += own * of_row[r] / (independent + least);
        }
    for (int r = 0; r < bins; r++)
        for (int c = 0; c < columns; c++) slopes[r * columns + c] -= by_row[r] + by_column[c];
    return found;
}

// Adds to `sums` (3, 4) how the mutual information changes with the motion of points `from` to before `to`. `slopes`
// (bins, columns): by what a point adds to an entry.
void follow(const Points& p, int64_t from, int64_t to, const float* slopes, double* sums) {
    for (int64_t n = from; n < to; n++) {
        if (p.first[n] < 0) continue;
        const float t = p.share[n], s = 1 - t, *by = slopes + p.first[n];
        const float change = -3 * s * s * by[0] + (9 * t - 12) * t * by[1] + ((6 - 9 * t) * t + 3) * by[2] +
                             3 * t * t * by[3];
        for (int axis = 0; axis < 3; axis++) {
            const double along = double(change) * p.slopes[3 * n + axis];
            for (int k = 0; k < 3; k++) sums[4 * axis + k] += along * p.offsets[3 * n + k];
            sums[4 * axis + 3] += along;
        }
    }
}

}  // namespace

// `offsets` (count, 3) in mm, moved by `motion` (3, 4) to indices (x, y, z) of `volume`, and `rows` (count): the bin of
// their own grey values. `found`: the mutual information, how many points fall inside of the volume, and the slopes (3, 4).
KERNEL int mutual_information(const float* offsets, const int32_t* rows, const float* volume, const int64_t* shape,
                              const double* motion, double* found, int64_t count, int bins, int threads) {
    const int columns = bins + REACH - 1, entries = bins * columns + REACH;
    const int pieces = int((count + PIECE - 1) / PIECE);
    auto first = room<int32_t>(count);
    auto share = room<float>(count), slopes = room<float>(3 * size_t(count));
    auto histograms = room<float>(size_t(pieces) * entries);
    auto inside = room<int64_t>(pieces);
    auto sums = room<double>(size_t(pieces) * 12);
    if (!first || !share || !slopes || !histograms || !inside || !sums) return 1;
    const Points p{offsets, volume, rows, Lattice(shape), motion, count, bins, columns,
                   first.get(), share.get(), slopes.get()};
    side_by_side(pieces, threads, [&](int n) {
        float* own = &histograms[size_t(n) * entries];
        std::fill(own, own + entries, 0.0f);
        inside[n] = look_up(p, n * PIECE, std::min(count, (n + 1) * PIECE), own);
    });
    int64_t within = 0;
    for (int n = 0; n < pieces; n++) within += inside[n];
    std::fill(found, found + 14, 0.0);
    found[1] = double(within);
    if (!within) return 0;
    try {
        std::vector<double> joint(entries, 0.0), by_entry(entries, 0.0);
        for (int n = 0; n < pieces; n++)
            for (int e = 0; e < entries; e++) joint[e] += histograms[size_t(n) * entries + e];
        for (auto& entry : joint) entry /= 6.0 * double(within);
        found[0] = information(joint.data(), bins, columns, by_entry.data());
        // A grey value that rises by 1 passes all bins.
        const double scale = (bins - 1) / (6.0 * double(within));
        std::vector<float> passed(entries);
        for (int e = 0; e < entries; e++) passed[e] = float(by_entry[e] * scale);
        side_by_side(pieces, threads, [&](int n) {
            double* own = &sums[size_t(n) * 12];
            std::fill(own, own + 12, 0.0);
            follow(p, n * PIECE, std::min(count, (n + 1) * PIECE), passed.data(), own);
        });
    } catch (const std::bad_alloc&) {
        return 1;
    }
    for (int n = 0; n < pieces; n++)
        for (int k = 0; k < 12; k++) found[2 + k] += sums[size_t(n) * 12 + k];
    return 0;
}
