// What the kernels share: vectors of channels, places between voxels, pieces of work side by side.
//
// Plain C++17 and nothing but the standard library. Arrays are (z, y, x), as in the Python package. A kernel returns 0,
// or 1 where memory ran out. Work is cut the same way however many threads there are, and sums are added up in a fixed
// order, so that results do not depend on the threads.

#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#if defined(_WIN32)
#define KERNEL extern "C" __declspec(dllexport)
#else
#define KERNEL extern "C" __attribute__((visibility("default")))
#endif

#if defined(__GNUC__)
typedef float Lanes4 __attribute__((vector_size(16)));
typedef float Lanes8 __attribute__((vector_size(32)));
#else
template <int N>
struct Lanes {
    float values[N];
    float operator[](int n) const { return values[n]; }
};
template <int N, class Operation>
inline Lanes<N> each_lane(Operation operation) {
    Lanes<N> out;
    for (int n = 0; n < N; n++) out.values[n] = operation(n);
    return out;
}
template <int N>
inline Lanes<N> operator+(Lanes<N> a, Lanes<N> b) { return each_lane<N>([&](int n) { return a[n] + b[n]; }); }
template <int N>
inline Lanes<N> operator-(Lanes<N> a, Lanes<N> b) { return each_lane<N>([&](int n) { return a[n] - b[n]; }); }
template <int N>
inline Lanes<N> operator*(Lanes<N> a, Lanes<N> b) { return each_lane<N>([&](int n) { return a[n] * b[n]; }); }
template <int N>
inline Lanes<N> operator*(Lanes<N> a, float b) { return each_lane<N>([&](int n) { return a[n] * b; }); }
template <int N>
inline Lanes<N> operator-(Lanes<N> a, float b) { return each_lane<N>([&](int n) { return a[n] - b; }); }
template <int N>
inline Lanes<N> operator*(float a, Lanes<N> b) { return b * a; }
template <int N>
inline Lanes<N>& operator+=(Lanes<N>& a, Lanes<N> b) { return a = a + b; }
typedef Lanes<4> Lanes4;
typedef Lanes<8> Lanes8;
#endif

template <class V>
inline V load(const float* from) {
    V values;
    std::memcpy(&values, from, sizeof values);
    return values;
}

template <class V>
inline void store(float* to, V values) { std::memcpy(to, &values, sizeof values); }

inline float total(float v) { return v; }
inline float total(Lanes4 v) { return (v[0] + v[2]) + (v[1] + v[3]); }
inline float total(Lanes8 v) { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }

template <class V>
inline V mixed(V a, V b, float share) { return a + (b - a) * share; }

// A place on an axis of `count` voxels: the voxel before it and the share of the next one. Beyond the ends it is the
// end, and so it is where `at` is not a number.
struct Place {
    int first;
    float share;
};

inline Place place_on(float at, int count) {
    const float last = float(count - 1);
    at = at > 0.0f ? at : 0.0f;
    at = at < last ? at : last;
    // Written out: std::min takes addresses, which keeps loops from becoming vector code.
    const int most = count > 2 ? count - 2 : 0, whole = int(at), first = whole < most ? whole : most;
    return {first, at - float(first)};
}

// The nearest voxel, the even one of two; adding 1.5 * 2^23 rounds so, and unlike a function it becomes vector code.
inline int nearest_on(float at, int count) {
    const float last = float(count - 1), rounding = 12582912.0f;
    at = at > 0.0f ? at : 0.0f;
    at = at < last ? at : last;
    return int((at + rounding) - rounding);
}

// A lattice (d, h, w) and the steps from a voxel to the next one along each axis, 0 where there is no next one.
struct Lattice {
    int d, h, w;
    Lattice(const int64_t* shape) : d(int(shape[0])), h(int(shape[1])), w(int(shape[2])) {}
    ptrdiff_t voxels() const { return ptrdiff_t(d) * h * w; }
    ptrdiff_t index(int z, int y, int x) const { return (ptrdiff_t(z) * h + y) * w + x; }
    ptrdiff_t step_z() const { return d > 1 ? ptrdiff_t(h) * w : 0; }
    ptrdiff_t step_y() const { return h > 1 ? w : 0; }
    ptrdiff_t step_x() const { return w > 1 ? 1 : 0; }
};

// Trilinear value of the vector at `corner` and its seven neighbours, steps in numbers.
template <class V>
inline V trilinear(const float* corner, ptrdiff_t sz, ptrdiff_t sy, ptrdiff_t sx, float tz, float ty, float tx) {
    const float *b = corner + sy, *c = corner + sz, *d = corner + sz + sy;
    V low = mixed(mixed(load<V>(corner), load<V>(corner + sx), tx), mixed(load<V>(b), load<V>(b + sx), tx), ty);
    V high = mixed(mixed(load<V>(c), load<V>(c + sx), tx), mixed(load<V>(d), load<V>(d + sx), tx), ty);
    return mixed(low, high, tz);
}

// Room for `count` values that are not set; without any where memory ran out.
template <class T>
std::unique_ptr<T[]> room(size_t count) { return std::unique_ptr<T[]>(new (std::nothrow) T[count]); }

// task(0) to task(count - 1) in as many threads as asked for. Which thread does what is not fixed.
template <class Task>
void side_by_side(int count, int threads, const Task& task) {
    std::atomic<int> next{0};
    auto work = [&] {
        for (int n; (n = next.fetch_add(1)) < count;) task(n);
    };
    std::vector<std::thread> helpers;
    for (int n = 1; n < std::min(threads, count); n++) {
        try {
            helpers.emplace_back(work);
        } catch (const std::exception&) {
            break;  // no more threads to be had: the others do the work
        }
    }
    work();
    for (auto& helper : helpers) helper.join();
}

// The same with room of its own for each thread: task(what make() gave, n). False where make().failed().
template <class Make, class Task>
bool side_by_side_with(int count, int threads, const Make& make, const Task& task) {
    const int workers = std::max(1, std::min(threads, count));
    std::atomic<int> next{0};
    std::atomic<bool> worked{true};
    side_by_side(workers, workers, [&](int) {
        auto own = make();
        if (own.failed()) worked = false;
        for (int n; worked && (n = next.fetch_add(1)) < count;) task(own, n);
    });
    return worked;
}
