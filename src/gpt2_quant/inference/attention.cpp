// Causal softmax attention in float32, a text's head at a time, 2 * LANES queries at a time. Scores
// stand as [key, query], so that maximum, exponential and sum over keys are those of whole vectors.
// See cpu.py.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#ifdef __AVX512F__
constexpr int LANES = 16, ROWS = 8;
#else
constexpr int LANES = 8, ROWS = 4;
#endif
constexpr int64_t TILE = 2 * LANES;
typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));

static inline Vector load(const float* x) { return *(const Vector*)x; }
static inline Vector& at(float* x) { return *(Vector*)x; }

// c `[ROWS, TILE]` = a `[ROWS, depth]` b `[depth, TILE]`; a[r, i] is a[r * row + i * column].
static inline void multiply(const float* a, int64_t row, int64_t column, const float* b,
                            int64_t depth, float* c) {
    Vector left[ROWS] = {}, right[ROWS] = {};
    for (int64_t i = 0; i < depth; i++) {
        Vector first = load(b + i * TILE), second = load(b + i * TILE + LANES);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            float value = a[r * row + i * column];
            left[r] += value * first;
            right[r] += value * second;
        }
    }
    for (int r = 0; r < ROWS; r++) {
        at(c + r * TILE) = left[r];
        at(c + r * TILE + LANES) = right[r];
    }
}

// e^x for x <= 0: 2^n e^r with |r| <= ln(2) / 2, its polynomial and the two parts of ln(2) from
// Cephes' expf. Below e^-87, near the smallest normal float32, it stays there: a hidden key weighs
// 1.6e-38.
static inline Vector exponential(Vector x) {
    x = x < -87.0f ? Vector{} - 87.0f : x;
    Vector n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // rounds, see kernels/rows.py
    Vector r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Vector e = 1.9875691500e-4f * r + 1.3981999507e-3f;
    e = e * r + 8.3334519073e-3f;
    e = e * r + 4.1665795894e-2f;
    e = e * r + 1.6666665459e-1f;
    e = e * r + 5.0000001201e-1f;
    Integers power = (__builtin_convertvector(n, Integers) + 127) << 23;
    return (e * r * r + r + 1.0f) * (Vector)power;
}

// qkv `[texts * length, 3 * heads * size]` -> out `[texts * length, heads * size]`; size a multiple
// of TILE.
extern "C" void attention(const float* qkv, float* out, int64_t texts, int64_t length,
                          int64_t heads, int64_t size, int64_t threads, float scale) {
    const int64_t width = heads * size, keys = (length + ROWS - 1) / ROWS * ROWS;
#pragma omp parallel num_threads(threads)
    {
        // value: columns in tiles, `[size / TILE, keys, TILE]`; query `[size, TILE]`.
        std::vector<float> key(keys * size), value(keys * size), query(size * TILE);
        std::vector<float> scores(keys * TILE);
#pragma omp for collapse(2) schedule(dynamic)
        for (int64_t t = 0; t < texts; t++)
            for (int64_t h = 0; h < heads; h++) {
                const float* from = qkv + t * length * 3 * width + h * size;
                for (int64_t i = 0; i < length; i++)
                    for (int64_t d = 0; d < size; d += LANES) {
                        const float* x = from + i * 3 * width + width + d;
                        at(&key[i * size + d]) = load(x);
                        at(&value[(d / TILE * keys + i) * TILE + d % TILE]) = load(x + width);
                    }
                for (int64_t first = 0; first < length; first += TILE) {
                    const int64_t queries = std::min(TILE, length - first), end = first + queries;
                    for (int64_t q = 0; q < queries; q++)
                        for (int64_t d = 0; d < size; d++)
                            query[d * TILE + q] = scale * from[(first + q) * 3 * width + d];
                    for (int64_t i = 0; i < end; i += ROWS)
                        multiply(&key[i * size], size, 1, query.data(), size, &scores[i * TILE]);
                    for (int64_t i = first + 1; i < end; i++)
                        std::fill_n(&scores[i * TILE], i - first, -INFINITY);
                    float factor[TILE];
                    for (int64_t q = 0; q < TILE; q += LANES) {
                        Vector highest = at(&scores[q]), total = {};
                        for (int64_t i = 1; i < end; i++) {
                            Vector x = at(&scores[i * TILE + q]);
                            highest = highest < x ? x : highest;
                        }
                        for (int64_t i = 0; i < end; i++) {
                            Vector& x = at(&scores[i * TILE + q]);
                            x = exponential(x - highest);
                            total += x;
                        }
                        at(factor + q) = 1.0f / total;
                    }
                    for (int64_t q = 0; q < queries; q += ROWS)
                        for (int64_t d = 0; d < size; d += TILE) {
                            float part[ROWS * TILE];
                            multiply(&scores[q], 1, TILE, &value[d * keys], end, part);
                            for (int64_t r = 0; r < std::min<int64_t>(ROWS, queries - q); r++) {
                                float* to = out + (t * length + first + q + r) * width + h * size;
                                for (int64_t j = 0; j < TILE; j += LANES)
                                    at(to + d + j) = at(part + r * TILE + j) * factor[q + r];
                            }
                        }
                }
            }
    }
}
