// y[t, o] = (sum_i a[t, i] * b[o, i]) * s[t] * r[o] + bias[o] with an exact sum, where a and s are
// x quantized by rows. By vpmaddubsw: it multiplies unsigned by signed bytes, twice as many codes
// as vpmaddwd with its 16-bit lanes, and adds neighbours, but cuts off what 16 bits do not hold.
// The unsigned factor is a + 128, whose surplus of 128 * sum_i b[o, i] is taken off at the end.
// Then two products of weights with the same sign overflow where
//   255 * |b0 + b1| > 32767, which is |b0 + b1| > 128,
// and of opposite signs never. Such pairs are one to three in a hundred of GPT-2's. Half of each of
// their codes goes into a list that is multiplied apart, as outliers are in FBGEMM (Khudia et al.
// 2021, arXiv:2101.05615); no pair of halves or of what they leave sums to more than 128. Sums are
// modulo 2^32: what wraps on the way does no harm where the result fits (k to 133,144).
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#ifdef __AVX512BW__
using Vector = __m512i;
#define SIMD(name) _mm512_##name
static inline bool any(Vector x) { return _mm512_test_epi32_mask(x, x); }
#else
using Vector = __m256i;
#define SIMD(name) _mm256_##name
static inline bool any(Vector x) { return !_mm256_testz_si256(x, x); }
#endif

// A quad is four neighbouring codes, an int32. A tile is TILE tokens, one to each lane of VECTORS
// vectors, `[quad, token]`. COLUMNS x VECTORS sums and what feeds them stay in the registers, PANEL
// channels' DEPTH inputs in the L1 cache, for BLOCK tokens, whose codes stay in the L2 cache.
constexpr int64_t LANES = sizeof(Vector) / 4, VECTORS = 2, COLUMNS = 4, TILE = LANES * VECTORS;
constexpr int64_t PANEL = 16, DEPTH = 768, QUADS = DEPTH / 4, BLOCK = 512;
static_assert(COLUMNS == 4 && PANEL % COLUMNS == 0);  // four, as `multiply` transposes them
static_assert(QUADS % LANES == 0 && BLOCK % TILE == 0);

static inline Vector add_products(Vector sum, Vector a, Vector b) {
    Vector pairs = SIMD(maddubs_epi16)(a, b);
    return SIMD(add_epi32)(sum, SIMD(madd_epi16)(pairs, SIMD(set1_epi16)(1)));
}

struct Halves {  // of one channel's pairs, by the quads that hold them
    int64_t count;
    int32_t quad[QUADS], codes[QUADS];
};

// Copies one channel's codes, less halves of the pairs that could overflow. Returns their sum.
static inline uint32_t split(const int8_t* from, int64_t quads, int32_t* to, Halves& halves) {
    Vector sum = {};
    halves.count = 0;
    for (int64_t q = 0; q < quads; q += LANES) {
        Vector codes;
        std::memcpy(&codes, from + 4 * q, sizeof codes);
        Vector pairs = SIMD(maddubs_epi16)(SIMD(set1_epi8)(1), codes);
        sum = SIMD(add_epi32)(sum, SIMD(madd_epi16)(pairs, SIMD(set1_epi16)(1)));
        // All bits of a lane, if |pair| + 32767 - 128 has the sign bit.
        Vector limit = SIMD(set1_epi16)(INT16_MAX - 128);
        Vector over = SIMD(srai_epi16)(SIMD(add_epi16)(SIMD(abs_epi16)(pairs), limit), 15);
        if (any(over)) {
            // The mean of code + 128 and 0, rounded up, which is half + 64.
            Vector half = SIMD(avg_epu8)(codes ^ SIMD(set1_epi8)(-128), Vector{});
            half = SIMD(sub_epi8)(half, SIMD(set1_epi8)(64)) & over;
            codes = SIMD(sub_epi8)(codes, half);
            int32_t taken[LANES];
            std::memcpy(taken, &half, sizeof taken);
            for (int64_t j = 0; j < LANES; j++) {
                halves.quad[halves.count] = q + j;
                halves.codes[halves.count] = taken[j];
                halves.count += taken[j] != 0;
            }
        }
        *(Vector*)(to + q) = codes;
    }
    uint32_t lanes[LANES];
    std::memcpy(lanes, &sum, sizeof lanes);
    return std::accumulate(lanes, lanes + LANES, 0u);
}

// Adds the products of a tile a `[quads, VECTORS]` with COLUMNS channels b, QUADS apart, to sums
// `[TILE, PANEL]`.
static inline void multiply(const Vector* a, const int32_t* b, int64_t quads, const Halves* halves,
                            uint32_t* sums) {
    Vector sum[COLUMNS][VECTORS] = {};
#pragma GCC unroll 4
    for (int64_t q = 0; q < quads; q++)
#pragma GCC unroll 4
        for (int c = 0; c < COLUMNS; c++)
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; v++)
                sum[c][v] = add_products(sum[c][v], a[q * VECTORS + v],
                                         SIMD(set1_epi32)(b[c * QUADS + q]));
#pragma GCC unroll 4
    for (int c = 0; c < COLUMNS; c++)
        for (int64_t j = 0; j < halves[c].count; j++)
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; v++)
                sum[c][v] = add_products(sum[c][v], a[halves[c].quad[j] * VECTORS + v],
                                         SIMD(set1_epi32)(halves[c].codes[j]));
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; v++) {  // from tokens of a channel to channels of a token
        Vector low01 = SIMD(unpacklo_epi32)(sum[0][v], sum[1][v]);
        Vector low23 = SIMD(unpacklo_epi32)(sum[2][v], sum[3][v]);
        Vector high01 = SIMD(unpackhi_epi32)(sum[0][v], sum[1][v]);
        Vector high23 = SIMD(unpackhi_epi32)(sum[2][v], sum[3][v]);
        Vector rows[] = {
            SIMD(unpacklo_epi64)(low01, low23), SIMD(unpackhi_epi64)(low01, low23),
            SIMD(unpacklo_epi64)(high01, high23), SIMD(unpackhi_epi64)(high01, high23)};
        for (int t = 0; t < LANES; t++) {
            __m128i* to = (__m128i*)(sums + (v * LANES + t) * PANEL);
            *to = _mm_add_epi32(*to, ((__m128i*)&rows[t % 4])[t / 4]);
        }
    }
}

// The rows' scales as affine.quantize_rows has them, and their codes plus 128, by tiles.
static inline void quantize(const float* x, int64_t m, int64_t k, int64_t threads, uint32_t* tiles,
                            float* scales) {
#pragma omp parallel for num_threads(threads)
    for (int64_t t = 0; t < m; t++) {
        const float* row = x + t * k;
        Vector largest = {};  // of floats without their sign, which are ordered as their bits are
        for (int64_t i = 0; i < k; i += LANES) {
            Vector bits = (Vector)SIMD(loadu_ps)(row + i) & SIMD(set1_epi32)(INT32_MAX);
            largest = SIMD(max_epi32)(largest, bits);
        }
        int32_t lanes[LANES];
        std::memcpy(lanes, &largest, sizeof lanes);
        float absmax;
        std::memcpy(&absmax, std::max_element(lanes, lanes + LANES), sizeof absmax);
        scales[t] = std::max(absmax / 127, std::numeric_limits<float>::min());
        const float inverse = 1 / scales[t];
        uint32_t* to = tiles + t / TILE * TILE * (k / 4) + t % TILE;
        for (int64_t i = 0; i < k; i += 64) {
            uint8_t codes[64];
            uint32_t quads[16];
            for (int64_t j = 0; j < 64; j++)
                codes[j] = (int32_t)std::rint(row[i + j] * inverse) + 128;
            std::memcpy(quads, codes, sizeof quads);
            for (int64_t q = 0; q < 16; q++) to[(i / 4 + q) * TILE] = quads[q];
        }
    }
}

// x `[m, k]`, b `[n, k]`, r `[n]`, bias `[n]` or null, y `[m, n]`, rows one after another; k a
// multiple of 64; tiles 64-byte aligned, m * k bytes with m rounded up to a multiple of 32.
extern "C" void product(const float* x, const int8_t* b, const float* r, const float* bias,
                       uint32_t* tiles, float* y, int64_t m, int64_t n, int64_t k,
                       int64_t threads) {
    std::vector<float> s(m);
    quantize(x, m, k, threads, tiles, s.data());
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(threads)
    for (int64_t t0 = 0; t0 < m; t0 += BLOCK)
        for (int64_t o0 = 0; o0 < n; o0 += PANEL) {
            alignas(64) int32_t columns[PANEL * QUADS];
            alignas(64) uint32_t sums[BLOCK * PANEL];
            Halves halves[PANEL];
            uint32_t surplus[PANEL] = {};
            float scale[PANEL] = {}, shift[PANEL] = {};
            int64_t rows = std::min(BLOCK, m - t0), channels = std::min(PANEL, n - o0);
            std::fill_n(sums, (rows + TILE - 1) / TILE * TILE * PANEL, 0);
            for (int64_t i0 = 0; i0 < k; i0 += DEPTH) {
                int64_t depth = std::min(DEPTH, k - i0);
                for (int64_t c = 0; c < PANEL; c++) {
                    // Past the last channel the last once more, whose results are not written.
                    const int8_t* from = b + std::min(o0 + c, n - 1) * k + i0;
                    surplus[c] += 128 * split(from, depth / 4, columns + c * QUADS, halves[c]);
                }
                for (int64_t t = 0; t < rows; t += TILE) {
                    const uint32_t* tile = tiles + (t0 + t) * (k / 4) + i0 / 4 * TILE;
                    for (int64_t c = 0; c < PANEL; c += COLUMNS)
                        multiply((const Vector*)tile, columns + c * QUADS, depth / 4, halves + c,
                                 sums + t * PANEL + c);
                }
            }
            std::copy_n(r + o0, channels, scale);
            if (bias) std::copy_n(bias + o0, channels, shift);
            for (int64_t t = 0; t < rows; t++) {
                float line[PANEL], *to = y + (t0 + t) * n + o0;
                for (int64_t c = 0; c < PANEL; c++) {
                    int32_t sum = sums[t * PANEL + c] - surplus[c];
                    line[c] = sum * s[t0 + t] * scale[c] + shift[c];
                }
                if (channels == PANEL)  // of a size that the compiler knows
                    std::copy_n(line, PANEL, to);
                else
                    std::copy_n(line, channels, to);
            }
        }
}
