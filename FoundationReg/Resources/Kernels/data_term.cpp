// The data term of the refinement in one pass (numerics/data_term.py says what is worked out).
//
// Features lie voxel by voxel, their channels side by side and padded with zeros to whole vectors. Of a tile of the
// lattice, three planes of fixed plus warped features are held at a time, so that the slopes need no further look-up
// and nothing of the size of the volume is ever made.

#include "common.hpp"

namespace {

// Bytes of the three planes of a tile, which should stay in the processor's second cache, and planes of a tile.
const int PLANE_BYTES = 640 << 10;
const int TILE_PLANES = 32;

struct Problem {
    const float *fixed, *moving, *weight, *landing, *shift;
    const int32_t* extents;  // (d, h, 2): first voxel of a row with weight, and the one behind the last
    float *terms, *mass;
    Lattice lattice, nodes;  // nodes: those of `shift`
    int stride, padded;      // voxels per node of the result; numbers per voxel
    bool first_pair;
};

// Where the voxels from `low` to before `high` of row (z, y) land that are displaced by `to`. All places are told to be
// apart, which makes it vector code.
void find_row(const Lattice& l, int z, int y, int low, int high, const float* __restrict to_z,
              const float* __restrict to_y, const float* __restrict to_x, int32_t* __restrict corner,
              int32_t* __restrict nearest, float* __restrict share_z, float* __restrict share_y,
              float* __restrict share_x) {
    const int d = l.d, h = l.h, w = l.w;
    for (int x = low; x < high; x++) {
        const float at_z = z + to_z[x], at_y = y + to_y[x], at_x = x + to_x[x];
        const Place a = place_on(at_z, d), b = place_on(at_y, h), c = place_on(at_x, w);
        corner[x] = (a.first * h + b.first) * w + c.first;
        share_z[x] = a.share;
        share_y[x] = b.share;
        share_x[x] = c.share;
        nearest[x] = (nearest_on(at_z, d) * h + nearest_on(at_y, h)) * w + nearest_on(at_x, w);
    }
}

void enlarge_row(const float* __restrict line, const int32_t* __restrict node, const float* __restrict share, int next,
                 int low, int high, float* __restrict out) {
    for (int x = low; x < high; x++) out[x] = mixed(line[node[x]], line[node[x] + next], share[x]);
}

// Where the voxels of one row land under `shift`.
class Landing {
public:
    Landing(const Problem& p)
        : p(p), every(p.lattice.d / p.nodes.d), between(room<float>(3 * size_t(p.nodes.w))),
          moved(room<float>(3 * size_t(p.lattice.w))), node(room<int32_t>(p.lattice.w)),
          node_share(room<float>(p.lattice.w)), corner(room<int32_t>(p.lattice.w)),
          nearest(room<int32_t>(p.lattice.w)), share_z(room<float>(p.lattice.w)), share_y(room<float>(p.lattice.w)),
          share_x(room<float>(p.lattice.w)) {
        for (int x = 0; !failed() && x < p.lattice.w; x++) {
            const Place at = place(x, p.nodes.w);
            node[x] = at.first;
            node_share[x] = at.share;
        }
    }
    bool failed() const {
        const bool rows = between && moved && node && node_share;
        return !rows || !corner || !nearest || !share_z || !share_y || !share_x;
    }

    // Fills what follows for the voxels from `low` to before `high` of row (z, y).
    void find(int z, int y, int low, int high) {
        read(z, y, low, high);
        const float* to = moved.get();
        find_row(p.lattice, z, y, low, high, to, to + p.lattice.w, to + 2 * ptrdiff_t(p.lattice.w), corner.get(),
                 nearest.get(), share_z.get(), share_y.get(), share_x.get());
    }

private:
    Place place(int voxel, int count) const { return place_on((voxel + 0.5f) / every - 0.5f, count); }

    // `shift` at the voxels, from the nodes around them; component c of voxel x is moved[c * w + x].
    void read(int z, int y, int low, int high) {
        const int w = p.lattice.w, nodes = p.nodes.w;
        const Place at_z = place(z, p.nodes.d), at_y = place(y, p.nodes.h);
        const int first = place(low, nodes).first, last = std::min(place(high - 1, nodes).first + 1, nodes - 1);
        for (int c = 0; c < 3; c++) {
            const float* a = p.shift + c * p.nodes.voxels() + p.nodes.index(at_z.first, at_y.first, 0);
            const float *b = a + p.nodes.step_y(), *e = a + p.nodes.step_z(), *f = e + p.nodes.step_y();
            float* __restrict line = every > 1 ? &between[c * size_t(nodes)] : &moved[c * size_t(w)];
            for (int x = first; x <= last; x++)
                line[x] = mixed(mixed(a[x], b[x], at_y.share), mixed(e[x], f[x], at_y.share), at_z.share);
            if (every == 1) continue;
            enlarge_row(line, node.get(), node_share.get(), nodes > 1, low, high, &moved[c * size_t(w)]);
        }
    }

    const Problem& p;
    const int every;
    std::unique_ptr<float[]> between, moved;
    // By voxel of the row: the node before it, and the share of the next one.
    std::unique_ptr<int32_t[]> node;
    std::unique_ptr<float[]> node_share;

public:
    // By voxel of the row: the voxel before where it lands along all axes, the nearest one, and the shares of the next ones.
    std::unique_ptr<int32_t[]> corner, nearest;
    std::unique_ptr<float[]> share_z, share_y, share_x;
};

// Works through voxels z0 to z1 and y0 to y1 of the lattice. GROUPS vectors V hold the channels; 0: as many as `padded` says.
template <class V, int GROUPS>
class Tile {
    static const int LANES = sizeof(V) / sizeof(float);
    int padded() const { return GROUPS ? GROUPS * LANES : p.padded; }

public:
    // For tiles of at most `high` rows.
    Tile(const Problem& p, int high)
        : p(p), row_size(size_t(p.lattice.w) * padded()), sums(room<float>(3 * (high + 2) * row_size)),
          counts(room<float>(3 * size_t(high + 2) * p.lattice.w)), landing(p) {}
    bool failed() const { return !sums || !counts || landing.failed(); }

    void run(int from_z, int to_z, int from_y, int to_y) {
        z0 = from_z;
        z1 = to_z;
        y0 = from_y;
        y1 = to_y;
        top = std::max(y0 - 1, 0);
        rows = std::min(y1 + 1, p.lattice.h) - top;
        for (int z = std::max(z0 - 1, 0); z < std::min(z0 + 1, p.lattice.d); z++) warp_plane(z);
        const int every = p.stride;
        for (int z = z0; z < z1; z++) {
            if (z + 1 < p.lattice.d && z + 1 <= z1) warp_plane(z + 1);
            for (int y = y0; y < y1; y += every) add_row(z, y);
        }
    }

private:
    float* sum(int z, int y) const { return &sums[((z % 3) * size_t(rows) + (y - top)) * row_size]; }
    float* count(int z, int y) const { return &counts[((z % 3) * size_t(rows) + (y - top)) * p.lattice.w]; }
    const int32_t* extent(int z, int y) const { return p.extents + 2 * (ptrdiff_t(z) * p.lattice.h + y); }

    // Widen [low, high) to the voxels with weight of row (z, y) of this tile, and `more` beyond.
    void widen(int z, int y, int more, int& low, int& high) const {
        if (z < z0 || z >= z1 || y < y0 || y >= y1 || extent(z, y)[0] >= extent(z, y)[1]) return;
        low = std::min(low, std::max(extent(z, y)[0] - more, 0));
        high = std::max(high, std::min(extent(z, y)[1] + more, p.lattice.w));
    }

    // Fixed plus warped features of plane z as far as the slopes need them, and what its voxels count.
    void warp_plane(int z) {
        for (int y = top; y < top + rows; y++) {
            int low = p.lattice.w, high = 0;
            widen(z, y, 1, low, high);
            widen(z - 1, y, 0, low, high);
            widen(z + 1, y, 0, low, high);
            widen(z, y - 1, 0, low, high);
            widen(z, y + 1, 0, low, high);
            if (low < high) warp_row(z, y, low, high);
        }
    }

    void warp_row(int z, int y, int low, int high) {
        const Lattice& l = p.lattice;
        landing.find(z, y, low, high);
        const float* fixed = p.fixed + l.index(z, y, 0) * padded();
        const float* weight = p.weight + l.index(z, y, 0);
        float *out = sum(z, y), *counted = count(z, y);
        const ptrdiff_t sz = l.step_z() * padded(), sy = l.step_y() * padded(), sx = l.step_x() * padded();
        for (int x = low; x < high; x++) {
            const float* corner = p.moving + ptrdiff_t(landing.corner[x]) * padded();
            const float tz = landing.share_z[x], ty = landing.share_y[x], tx = landing.share_x[x];
            for (int lane = 0; lane < padded(); lane += LANES) {
                const ptrdiff_t at = ptrdiff_t(x) * padded() + lane;
                store(out + at, load<V>(fixed + at) + trilinear<V>(corner + lane, sz, sy, sx, tz, ty, tx));
            }
        }
        for (int x = low; x < high; x++)
            counted[x] = weight[x] > 0.0f ? weight[x] * p.landing[landing.nearest[x]] : 0.0f;
    }

    // What the voxels of plane z give to the nodes of the rows y to y + stride - 1.
    void add_row(int z, int y) {
        const int every = p.stride;
        int low = p.lattice.w, high = 0;
        for (int n = 0; n < every; n++) widen(z, y + n, 0, low, high);
        for (int x = low / every * every; x < high; x += every) add_node(z, y, x);
    }

    void add_node(int z, int y, int x) {
        const int every = p.stride;
        V sum_of[10] = {};
        float counted = 0.0f;
        for (int dy = 0; dy < every; dy++) {
            const int32_t* held = extent(z, y + dy);
            for (int at = std::max(x, held[0]); at < std::min(x + every, held[1]); at++) {
                const float share = count(z, y + dy)[at];
                if (!(share > 0.0f)) continue;
                counted += share;
                add_voxel(z, y + dy, at, share, sum_of);
            }
        }
        if (!(counted > 0.0f)) return;
        const ptrdiff_t line = ptrdiff_t(z / every) * (p.lattice.h / every) + y / every;
        const ptrdiff_t node = line * (p.lattice.w / every) + x / every;
        const ptrdiff_t all = p.lattice.voxels() / (ptrdiff_t(every) * every * every);
        const float mean = 1.0f / (every * every * every);
        for (int n = 0; n < 10; n++) p.terms[n * all + node] += mean * total(sum_of[n]);
        if (p.first_pair) p.mass[node] += mean * counted;
    }

    // Products of residual and slopes, summed by lane. There is no slope across a face of the lattice.
    inline void add_voxel(int z, int y, int x, float share, V* sum_of) const {
        const Lattice& l = p.lattice;
        const bool in_z = z > 0 && z + 1 < l.d, in_y = y > 0 && y + 1 < l.h, in_x = x > 0 && x + 1 < l.w;
        const ptrdiff_t at = ptrdiff_t(x) * padded();
        const float* here = sum(z, y) + at;
        const float *z_low = in_z ? sum(z - 1, y) + at : here, *z_high = in_z ? sum(z + 1, y) + at : here;
        const float *y_low = in_y ? here - row_size : here, *y_high = in_y ? here + row_size : here;
        const float *x_low = in_x ? here - padded() : here, *x_high = in_x ? here + padded() : here;
        const float* fixed = p.fixed + l.index(z, y, x) * padded();
        for (int lane = 0; lane < padded(); lane += LANES) {
            const V f = load<V>(fixed + lane);
            const V rest = (f + f) - load<V>(here + lane);
            const V sz = load<V>(z_high + lane) - load<V>(z_low + lane);
            const V sy = load<V>(y_high + lane) - load<V>(y_low + lane);
            const V sx = load<V>(x_high + lane) - load<V>(x_low + lane);
            const V r = rest * share, a = sz * share, b = sy * share;
            sum_of[0] += r * sz;
            sum_of[1] += r * sy;
            sum_of[2] += r * sx;
            sum_of[3] += a * sz;
            sum_of[4] += a * sy;
            sum_of[5] += a * sx;
            sum_of[6] += b * sy;
            sum_of[7] += b * sx;
            sum_of[8] += (sx * share) * sx;
            sum_of[9] += r * rest;
        }
    }

    const Problem& p;
    const size_t row_size;
    int z0, z1, y0, y1, top, rows;
    std::unique_ptr<float[]> sums, counts;
    Landing landing;
};

template <class V, int GROUPS>
bool run_tiles(const Problem& p, int threads) {
    const int every = p.stride, d = p.lattice.d / every * every, h = p.lattice.h / every * every;
    const size_t row_bytes = size_t(p.lattice.w) * p.padded * sizeof(float);
    const int fitting = int(PLANE_BYTES / (3 * row_bytes)) - 2;
    const int high = std::max(fitting, std::max(every, 6)) / every * every, deep = TILE_PLANES / every * every;
    const int across = (h + high - 1) / high, down = (d + deep - 1) / deep;
    auto made = [&] { return Tile<V, GROUPS>(p, high); };
    return side_by_side_with(across * down, threads, made, [&](Tile<V, GROUPS>& tile, int n) {
        const int z0 = n / across * deep, y0 = n % across * high;
        const int z1 = std::min(z0 + deep, d), y1 = std::min(y0 + high, h);
        for (int z = z0; z < z1; z++)
            for (int y = y0; y < y1; y++) {
                const int32_t* held = p.extents + 2 * (ptrdiff_t(z) * p.lattice.h + y);
                if (held[0] < held[1]) return tile.run(z0, z1, y0, y1);
            }
    });
}

}  // namespace

// Where the rows of `weight` (d, h, w) have any: extents (d, h, 2), the first voxel and the one behind the last.
KERNEL int row_extents(const float* weight, int32_t* extents, const int64_t* shape) {
    const Lattice l(shape);
    for (ptrdiff_t row = 0; row < ptrdiff_t(l.d) * l.h; row++) {
        const float* values = weight + row * l.w;
        int first = 0, last = l.w;
        while (first < last && !(values[first] > 0.0f)) first++;
        while (last > first && !(values[last - 1] > 0.0f)) last--;
        extents[2 * row] = first;
        extents[2 * row + 1] = last;
    }
    return 0;
}

// terms (10, nodes): three rows of the negative gradient, six of curvature and the squared residual, means over the
// voxels of each node; mass (nodes): what these count. Both have to be zero before. `stride` must divide the lattice.
KERNEL int data_term(const float* fixed, const float* moving, const float* weight, const float* landing,
                     const float* shift, const int32_t* extents, float* terms, float* mass, const int64_t* shape,
                     const int64_t* shift_shape, int stride, int padded, int threads) {
    const Problem p{fixed,         moving, weight, landing, shift,         extents, terms,
                    mass,          Lattice(shape), Lattice(shift_shape), stride, padded, mass != nullptr};
    const bool worked = padded == 8       ? run_tiles<Lanes8, 1>(p, threads)
                        : padded % 8 == 0 ? run_tiles<Lanes8, 0>(p, threads)
                        : padded == 4     ? run_tiles<Lanes4, 1>(p, threads)
                                          : run_tiles<float, 1>(p, threads);
    return worked ? 0 : 1;
}
