// Conjugate gradients for the step of a Gauss-Newton iteration (numerics/regularisation.py says which system it is).

#include "common.hpp"

namespace {

// Planes that are worked on at a time. It is the same for any number of threads: sums are taken piece by piece.
const int SLAB = 8;

struct System {
    Lattice l;
    const float *curvature, *weight;  // (6: zz zy zx yy yx xx, nodes) and (nodes), or null
    float diffusion, bending;
    int threads;

    ptrdiff_t area() const { return ptrdiff_t(l.h) * l.w; }

    // task(slab, first plane, plane behind the last)
    template <class Task>
    void by_slab(const Task& task) const {
        side_by_side(slabs(), threads, [&](int s) { task(s, s * SLAB, std::min((s + 1) * SLAB, l.d)); });
    }
    template <class Make, class Task>
    bool by_slab_with(const Make& make, const Task& task) const {
        return side_by_side_with(slabs(), threads, make, [&](auto& own, int s) {
            task(own, s, s * SLAB, std::min((s + 1) * SLAB, l.d));
        });
    }
    int slabs() const { return (l.d + SLAB - 1) / SLAB; }
};

// The differences of one row's values to those before and behind along all axes, added up; each counts half of the sum
// of both nodes' weights where there are weights. Beyond the border lie the same values.
template <bool WEIGHTED>
void negative_laplacian(const System& s, const float* u, int z, int y, float* __restrict out) {
    const Lattice& l = s.l;
    const ptrdiff_t at = l.index(z, y, 0), area = s.area(), w = l.w;
    const float *c = u + at, *below = z ? c - area : c, *above = z + 1 < l.d ? c + area : c;
    const float *before = y ? c - w : c, *behind = y + 1 < l.h ? c + w : c;
    const float *v = nullptr, *v1 = nullptr, *v2 = nullptr, *v3 = nullptr, *v4 = nullptr;
    if (WEIGHTED) {
        v = s.weight + at;
        v1 = z ? v - area : v;
        v2 = z + 1 < l.d ? v + area : v;
        v3 = y ? v - w : v;
        v4 = y + 1 < l.h ? v + w : v;
    }
    auto node = [&](ptrdiff_t x, ptrdiff_t low, ptrdiff_t high) {
        if (!WEIGHTED)
            return ((c[x] - below[x]) + (c[x] - above[x])) + ((c[x] - before[x]) + (c[x] - behind[x])) +
                   ((c[x] - c[low]) + (c[x] - c[high]));
        return 0.5f * (((c[x] - below[x]) * (v[x] + v1[x]) + (c[x] - above[x]) * (v[x] + v2[x])) +
                       ((c[x] - before[x]) * (v[x] + v3[x]) + (c[x] - behind[x]) * (v[x] + v4[x])) +
                       ((c[x] - c[low]) * (v[x] + v[low]) + (c[x] - c[high]) * (v[x] + v[high])));
    };
    for (ptrdiff_t x = 1; x + 1 < w; x++) out[x] = node(x, x - 1, x + 1);
    out[0] = node(0, 0, std::min<ptrdiff_t>(1, w - 1));
    if (w > 1) out[w - 1] = node(w - 1, w - 2, w - 1);
}

// Sum of a * b.
double product(const float* a, const float* b, ptrdiff_t count) {
    Lanes8 sums[2] = {};
    ptrdiff_t n = 0;
    for (; n + 16 <= count; n += 16) {
        sums[0] += load<Lanes8>(a + n) * load<Lanes8>(b + n);
        sums[1] += load<Lanes8>(a + n + 8) * load<Lanes8>(b + n + 8);
    }
    double sum = double(total(sums[0])) + double(total(sums[1]));
    for (; n < count; n++) sum += double(a[n]) * b[n];
    return sum;
}

// out (3, nodes) = curvature v + regulariser(v) in planes z0 to before z1.
class Operator {
public:
    explicit Operator(const System& s) : s(s), first(room<float>(3 * size_t(s.area()))), line(room<float>(2 * s.l.w)) {}
    bool failed() const { return !first || !line; }

    void apply(const float* v, float* out, int z0, int z1) {
        for (int c = 0; c < 3; c++) {
            const float* u = v + c * s.l.voxels();
            // Three planes of the weighted Laplacian of the component are held.
            for (int z = std::max(z0 - 1, 0); z <= z0; z++) weighted(u, z);
            for (int z = z0; z < z1; z++) {
                if (z + 1 < s.l.d) weighted(u, z + 1);
                for (int y = 0; y < s.l.h; y++) add_row(v, c, z, y, out);
            }
        }
    }

private:
    float* plane(int z) const { return first.get() + (z % 3) * size_t(s.area()); }

    void weighted(const float* u, int z) {
        for (int y = 0; y < s.l.h; y++) {
            float* __restrict to = plane(z) + ptrdiff_t(y) * s.l.w;
            negative_laplacian<false>(s, u, z, y, to);
            if (!s.weight) continue;
            const float* w = s.weight + s.l.index(z, y, 0);
            for (int x = 0; x < s.l.w; x++) to[x] *= w[x];
        }
    }

    void add_row(const float* v, int c, int z, int y, float* out) {
        const Lattice& l = s.l;
        const ptrdiff_t at = l.index(z, y, 0), all = l.voxels(), w = l.w;
        float *__restrict bend = line.get(), *__restrict stretch = bend + w;
        // The Laplacian of the held planes, whose neighbours are not those in a volume.
        const float *here = plane(z) + ptrdiff_t(y) * w, *below = z ? plane(z - 1) + ptrdiff_t(y) * w : here;
        const float *above = z + 1 < l.d ? plane(z + 1) + ptrdiff_t(y) * w : here;
        const float *before = y ? here - w : here, *behind = y + 1 < l.h ? here + w : here;
        auto node = [&](ptrdiff_t x, ptrdiff_t low, ptrdiff_t high) {
            return ((here[x] - below[x]) + (here[x] - above[x])) + ((here[x] - before[x]) + (here[x] - behind[x])) +
                   ((here[x] - here[low]) + (here[x] - here[high]));
        };
        for (ptrdiff_t x = 1; x + 1 < w; x++) bend[x] = node(x, x - 1, x + 1);
        bend[0] = node(0, 0, std::min<ptrdiff_t>(1, w - 1));
        if (w > 1) bend[w - 1] = node(w - 1, w - 2, w - 1);
        if (s.weight)
            negative_laplacian<true>(s, v + c * all, z, y, stretch);
        else
            negative_laplacian<false>(s, v + c * all, z, y, stretch);
        float* __restrict to = out + c * all + at;
        if (!s.curvature) {
            for (ptrdiff_t x = 0; x < w; x++) to[x] = s.diffusion * stretch[x] + s.bending * bend[x];
            return;
        }
        static const int ROWS[3][3] = {{0, 1, 2}, {1, 3, 4}, {2, 4, 5}};
        const float* rows[3];
        for (int n = 0; n < 3; n++) rows[n] = s.curvature + ROWS[c][n] * all + at;
        const float *a = v + at, *b = a + all, *e = b + all;
        for (ptrdiff_t x = 0; x < w; x++)
            to[x] = rows[0][x] * a[x] + rows[1][x] * b[x] + rows[2][x] * e[x] + s.diffusion * stretch[x] +
                    s.bending * bend[x];
    }

    const System& s;
    std::unique_ptr<float[]> first, line;
};

class ConjugateGradients {
public:
    ConjugateGradients(const System& s, const float* right, float* step)
        : s(s), right(right), step(step), all(s.l.voxels()), direction(room<float>(3 * size_t(all))),
          image(room<float>(3 * size_t(all))), residual(room<float>(3 * size_t(all))),
          inverse(room<float>(3 * size_t(all))), sums(room<double>(size_t(s.slabs()))) {}

    bool run(bool started, int steps) {
        if (!direction || !image || !residual || !inverse || !sums) return false;
        if (started && !apply(step, false)) return false;
        double power = begin(started), previous = 0.0;
        for (int n = 0; n < steps; n++) {
            turn(n ? float(power / std::max(previous, 1e-30)) : 0.0f);
            if (!apply(direction.get(), true)) return false;
            previous = power;
            power = advance(float(power / std::max(sum(), 1e-30)));
        }
        return true;
    }

private:
    double sum() const {
        double whole = 0.0;
        for (int n = 0; n < s.slabs(); n++) whole += sums[n];
        return whole;
    }

    // image = operator(v), and the sums of v * image.
    bool apply(const float* v, bool with_sums) {
        return s.by_slab_with([&] { return Operator(s); }, [&](Operator& system, int slab, int z0, int z1) {
            system.apply(v, image.get(), z0, z1);
            if (with_sums) sums[slab] = products(v, image.get(), z0, z1);
        });
    }

    double products(const float* a, const float* b, int z0, int z1) const {
        double whole = 0.0;
        for (int c = 0; c < 3; c++)
            for (int z = z0; z < z1; z++) {
                const ptrdiff_t at = c * all + z * s.area();
                whole += product(a + at, b + at, s.area());
            }
        return whole;
    }

    // Residual, inverse of the diagonal away from the border, and the residual's power.
    double begin(bool started) {
        static const int DIAGONAL[3] = {0, 3, 5};
        const float diagonal = 6.0f * s.diffusion + 42.0f * s.bending;
        s.by_slab([&](int slab, int z0, int z1) {
            const ptrdiff_t first = z0 * s.area(), count = (z1 - z0) * s.area();
            double whole = 0.0;
            for (int c = 0; c < 3; c++) {
                const ptrdiff_t at = c * all + first;
                const float* own = s.curvature + DIAGONAL[c] * all + first;
                float *__restrict r = &residual[at], *__restrict inv = &inverse[at], *__restrict d = &direction[at];
                for (ptrdiff_t n = 0; n < count; n++) {
                    r[n] = started ? right[at + n] - image[at + n] : right[at + n];
                    inv[n] = 1.0f / (own[n] + (s.weight ? diagonal * s.weight[first + n] : diagonal));
                    d[n] = r[n] * inv[n];
                    if (!started) step[at + n] = 0.0f;
                }
                whole += product(r, d, count);
            }
            sums[slab] = whole;
        });
        return sum();
    }

    // direction = residual / diagonal + share * direction
    void turn(float share) {
        s.by_slab([&](int, int z0, int z1) {
            for (int c = 0; c < 3; c++) {
                const ptrdiff_t at = c * all + z0 * s.area(), count = (z1 - z0) * s.area();
                const float *r = &residual[at], *inv = &inverse[at];
                float* __restrict d = &direction[at];
                for (ptrdiff_t n = 0; n < count; n++) d[n] = r[n] * inv[n] + share * d[n];
            }
        });
    }

    // A step of `length` along the direction; the residual's power after it.
    double advance(float length) {
        s.by_slab([&](int slab, int z0, int z1) {
            double whole = 0.0;
            for (int c = 0; c < 3; c++)
                for (int z = z0; z < z1; z++) {
                    const ptrdiff_t at = c * all + z * s.area(), count = s.area();
                    const float *d = &direction[at], *inv = &inverse[at];
                    float *__restrict r = &residual[at], *__restrict x = step + at, *__restrict i = &image[at];
                    for (ptrdiff_t n = 0; n < count; n++) {
                        x[n] += length * d[n];
                        r[n] -= length * i[n];
                        i[n] = r[n] * inv[n];
                    }
                    whole += product(r, i, count);
                }
            sums[slab] = whole;
        });
        return sum();
    }

    const System& s;
    const float* right;
    float* step;
    const ptrdiff_t all;
    std::unique_ptr<float[]> direction, image, residual, inverse;
    std::unique_ptr<double[]> sums;
};

}  // namespace

// out (d, h, w): squared norm of the gradient of `field` (3, d, h, w); forward and backward differences count half each.
KERNEL int strain_energy(const float* field, float* out, const int64_t* shape, int threads) {
    const Lattice l(shape);
    const ptrdiff_t area = ptrdiff_t(l.h) * l.w, w = l.w;
    side_by_side(l.d, int(std::min<ptrdiff_t>(threads, 1 + l.voxels() / 60000)), [&](int z) {
        for (int y = 0; y < l.h; y++) {
            float* __restrict to = out + l.index(z, y, 0);
            for (int c = 0; c < 3; c++) {
                const float* u = field + c * l.voxels() + l.index(z, y, 0);
                const float *below = z ? u - area : u, *above = z + 1 < l.d ? u + area : u;
                const float *before = y ? u - w : u, *behind = y + 1 < l.h ? u + w : u;
                auto node = [&](ptrdiff_t x, ptrdiff_t low, ptrdiff_t high) {
                    auto squared = [&](const float* other, ptrdiff_t at) { return (u[x] - other[at]) * (u[x] - other[at]); };
                    const float sum = (squared(below, x) + squared(above, x)) + (squared(before, x) + squared(behind, x)) +
                                      (squared(u, low) + squared(u, high));
                    return (c ? to[x] : 0.0f) + 0.5f * sum;
                };
                for (ptrdiff_t x = 1; x + 1 < w; x++) to[x] = node(x, x - 1, x + 1);
                to[0] = node(0, 0, std::min<ptrdiff_t>(1, w - 1));
                if (w > 1) to[w - 1] = node(w - 1, w - 2, w - 1);
            }
        }
    });
    return 0;
}

// out (3, d, h, w): half the gradient of the regulariser's energy at `field`; `weight` (d, h, w) of it, or null.
KERNEL int regulariser_gradient(const float* field, const float* weight, float* out, const int64_t* shape,
                                float diffusion, float bending, int threads) {
    const System system{Lattice(shape), nullptr, weight, diffusion, bending, threads};
    const bool worked = system.by_slab_with(
        [&] { return Operator(system); },
        [&](Operator& gradient, int, int z0, int z1) { gradient.apply(field, out, z0, z1); });
    return worked ? 0 : 1;
}

// step (3, d, h, w): `steps` conjugate gradient steps towards curvature step + regulariser(step) = right, from what it
// holds where `started`, else from zero. `weight` (d, h, w) of the regulariser's energy, or null.
KERNEL int conjugate_gradients(const float* curvature, const float* right, const float* weight, float* step,
                               const int64_t* shape, float diffusion, float bending, int started, int steps,
                               int threads) {
    const Lattice l(shape);
    // Threads are begun and joined for each sweep, which pays for large pieces only.
    const int used = int(std::min<ptrdiff_t>(threads, 1 + l.voxels() / 60000));
    const System system{l, curvature, weight, diffusion, bending, used};
    return ConjugateGradients(system, right, step).run(started != 0, steps) ? 0 : 1;
}
