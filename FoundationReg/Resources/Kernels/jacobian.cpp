// How much a displacement field on a lattice of nodes stretches the voxels of an image, and where it folds.

#include "common.hpp"

namespace {

// Planes that a thread works on at a time.
const int SLAB = 16;

struct Field {
    const float* nodes;  // (3, d, h, w): x, y and z of the displacement in mm
    const Lattice lattice;
    const double *first, *step;  // along z, y, x: the node index of the first voxel, and from voxel to voxel
    const Lattice voxels;

    Place place(int axis, int voxel, int count) const {
        return place_on(float(first[axis] + step[axis] * voxel), count);
    }
};

// The displacement at the voxels of three planes at a time, each (3, H, W).
class Planes {
public:
    Planes(const Field& f)
        : f(f), size(size_t(3) * f.voxels.h * f.voxels.w), values(room<float>(3 * size)),
          line(room<float>(f.lattice.w)), node(room<int32_t>(f.voxels.w)), share(room<float>(f.voxels.w)) {
        for (int x = 0; !failed() && x < f.voxels.w; x++) {
            const Place at = f.place(2, x, f.lattice.w);
            node[x] = at.first;
            share[x] = at.share;
        }
    }
    bool failed() const { return !values || !line || !node || !share; }
    const float* plane(int z) const { return &values[(z % 3) * size]; }

    void fill(int z) {
        const Lattice &n = f.lattice, &v = f.voxels;
        const Place at_z = f.place(0, z, n.d);
        float* to = &values[(z % 3) * size];
        for (int c = 0; c < 3; c++)
            for (int y = 0; y < v.h; y++, to += v.w) {
                const Place at_y = f.place(1, y, n.h);
                const float* a = f.nodes + c * n.voxels() + n.index(at_z.first, at_y.first, 0);
                const float *b = a + n.step_y(), *e = a + n.step_z(), *g = e + n.step_y();
                float* __restrict row = line.get();
                for (int x = 0; x < n.w; x++)
                    row[x] = mixed(mixed(a[x], b[x], at_y.share), mixed(e[x], g[x], at_y.share), at_z.share);
                const int next = n.w > 1;
                float* __restrict out = to;
                for (int x = 0; x < v.w; x++) out[x] = mixed(row[node[x]], row[node[x] + next], share[x]);
            }
    }

private:
    const Field& f;
    const size_t size;
    std::unique_ptr<float[]> values, line;
    std::unique_ptr<int32_t[]> node;
    std::unique_ptr<float[]> share;
};

// The determinants of row (z, y), without its ends. `turn` (3, 3): the axes x, y, z of the image in LPS; `half`: one over
// twice the distance of voxels along them.
void determinants(const Planes& planes, int z, int y, const Lattice& v, const float* turn, const float* half,
                  float* __restrict out) {
    const ptrdiff_t row = ptrdiff_t(y) * v.w, component = ptrdiff_t(v.h) * v.w;
    const float *here = planes.plane(z) + row, *before = planes.plane(z - 1) + row, *after = planes.plane(z + 1) + row;
    for (int x = 1; x < v.w - 1; x++) {
        float m[9];
        for (int c = 0; c < 3; c++) {
            const ptrdiff_t at = c * component + x;
            m[3 * c] = turn[3 * c] + (here[at + 1] - here[at - 1]) * half[0];
            m[3 * c + 1] = turn[3 * c + 1] + (here[at + v.w] - here[at - v.w]) * half[1];
            m[3 * c + 2] = turn[3 * c + 2] + (after[at] - before[at]) * half[2];
        }
        out[x] = m[0] * (m[4] * m[8] - m[5] * m[7]) - m[1] * (m[3] * m[8] - m[5] * m[6]) +
                 m[2] * (m[3] * m[7] - m[4] * m[6]);
    }
}

}  // namespace

// Of the voxels of `shape` without those at its faces, by plane (D, 3): how many have a determinant of at most 0, and
// the sums of its logarithm and of the square of that. `nodes` (3, d, h, w) in mm; `first` and `step` (z, y, x) place the
// voxels among them; `turn` (3, 3): the image's axes x, y, z in LPS, as columns; `spacing` (x, y, z).
KERNEL int jacobian_sums(const float* nodes, const int64_t* node_shape, const double* first, const double* step,
                         const int64_t* shape, const double* turn, const double* spacing, double* sums, int threads) {
    const Field field{nodes, Lattice(node_shape), first, step, Lattice(shape)};
    const Lattice& v = field.voxels;
    float axes[9], half[3];
    for (int n = 0; n < 9; n++) axes[n] = float(turn[n]);
    for (int n = 0; n < 3; n++) half[n] = float(0.5 / spacing[n]);
    // A mirrored image turns the sign.
    const double handed = turn[0] * (turn[4] * turn[8] - turn[5] * turn[7]) -
                          turn[1] * (turn[3] * turn[8] - turn[5] * turn[6]) +
                          turn[2] * (turn[3] * turn[7] - turn[4] * turn[6]);
    const float sign = handed < 0 ? -1.0f : 1.0f;
    std::fill(sums, sums + 3 * size_t(v.d), 0.0);
    if (v.d < 3 || v.h < 3 || v.w < 3) return 0;

    struct Room {
        Planes planes;
        std::unique_ptr<float[]> row;
        bool failed() const { return planes.failed() || !row; }
    };
    const auto made = [&] { return Room{Planes(field), room<float>(v.w)}; };
    const bool worked = side_by_side_with((v.d - 2 + SLAB - 1) / SLAB, threads, made, [&](Room& own, int n) {
        const int low = 1 + n * SLAB, high = std::min(low + SLAB, v.d - 1);
        own.planes.fill(low - 1);
        own.planes.fill(low);
        for (int z = low; z < high; z++) {
            own.planes.fill(z + 1);
            double folded = 0, sum = 0, square = 0;
            for (int y = 1; y < v.h - 1; y++) {
                determinants(own.planes, z, y, v, axes, half, own.row.get());
                for (int x = 1; x < v.w - 1; x++) {
                    const float found = sign * own.row[x], logarithm = std::log(std::max(found, 1e-6f));
                    folded += found <= 0.0f;
                    sum += logarithm;
                    square += double(logarithm) * logarithm;
                }
            }
            sums[3 * z] = folded;
            sums[3 * z + 1] = sum;
            sums[3 * z + 2] = square;
        }
    });
    return worked ? 0 : 1;
}
