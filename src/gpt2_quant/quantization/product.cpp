// y[t, o] = (sum_i a[t, i] * b[o, i]) * s[t] * r[o] + bias[o] with an exact sum, by Winograd's
// inner product (IEEE Transactions on Computers C-17, 1968): one multiplication for two products in
//   (a0 + b1) * (a1 + b0) = a0 * b0 + a1 * b1 + a0 * a1 + b0 * b1,
// whose last two terms are a row's own and a channel's own and are taken off at the end. Input i is
// paired with i + LANES, so nothing is rearranged. vpmaddwd multiplies 16-bit lanes, which hold
// sums of two codes, and adds neighbours, so a vector holds partial sums of one element of y. All
// sums are modulo 2^32: what wraps on the way does no harm where the result fits (k to 133,144).
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <vector>

// Written as assembly, because compilers move all multiplications before all additions and then
// spill what they hold. ROWS x COLUMNS sums and what feeds them fill the registers.
#ifdef __AVX512BW__
using Vector = __m512i;
constexpr int ROWS = 4;
#define REGISTER "v"
static inline __m256i halve(Vector x) {
    return _mm256_add_epi32(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
}
#else
using Vector = __m256i;
constexpr int ROWS = 2;
#define REGISTER "x"
static inline __m256i halve(Vector x) { return x; }
#endif
constexpr int COLUMNS = 4, LANES = sizeof(Vector) / sizeof(int16_t);

static inline void add_products(Vector& sum, Vector a0, Vector a1, Vector b0, Vector b1) {
    Vector x, y;
    asm("vpaddw %4, %3, %1\n\tvpaddw %6, %5, %2\n\tvpmaddwd %2, %1, %1\n\tvpaddd %1, %0, %0"
        : "+" REGISTER(sum), "=&" REGISTER(x), "=&" REGISTER(y)
        : REGISTER(b1), REGISTER(a0), REGISTER(b0), REGISTER(a1));
}

// PANEL channels of the weight, DEPTH inputs at a time, are widened into the L1 cache and used for
// BLOCK rows, whose share of a stays in the L2 cache.
constexpr int64_t PANEL = 16, DEPTH = 768, BLOCK = 192;
static_assert(PANEL % COLUMNS == 0 && DEPTH % (2 * LANES) == 0 && BLOCK % ROWS == 0);

static inline Vector load(const int16_t* x) { return *(const Vector*)x; }

// Widens k codes, zeros up to depth, a multiple of 2 * LANES. Returns the sum of products of pairs.
static inline uint32_t widen(const int8_t* codes, int64_t k, int64_t depth, int16_t* x) {
    for (int64_t i = 0; i < k; i++) x[i] = codes[i];
    for (int64_t i = k; i < depth; i++) x[i] = 0;
    uint32_t own = 0;
    for (int64_t i = 0; i < depth; i += 2 * LANES)
#pragma GCC unroll 1  // else GCC unrolls all of it and vectorizes nothing
        for (int64_t j = i; j < i + LANES; j++) own += x[j] * x[j + LANES];
    return own;
}

// Adds ROWS x COLUMNS products to sums `[ROWS, PANEL]`.
static inline void multiply(const int16_t* const* a, const int16_t* b, int64_t depth,
                            uint32_t* sums) {
    Vector sum[ROWS][COLUMNS] = {};
    for (int64_t i = 0; i < depth; i += 2 * LANES) {
#pragma GCC unroll 4
        for (int c = 0; c < COLUMNS; c++) {
            Vector b0 = load(b + c * DEPTH + i), b1 = load(b + c * DEPTH + i + LANES);
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; r++)
                add_products(sum[r][c], load(a[r] + i), load(a[r] + i + LANES), b0, b1);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) {
        __m256i left = _mm256_hadd_epi32(halve(sum[r][0]), halve(sum[r][1]));
        __m256i right = _mm256_hadd_epi32(halve(sum[r][2]), halve(sum[r][3]));
        __m256i both = _mm256_hadd_epi32(left, right);
        __m128i all = _mm_add_epi32(_mm256_castsi256_si128(both),
                                    _mm256_extracti128_si256(both, 1));
        __m128i* to = (__m128i*)(sums + r * PANEL);
        *to = _mm_add_epi32(*to, all);
    }
}

// a `[m, k]`, s `[m]`, b `[n, k]`, r `[n]`, bias `[n]` or null, y `[m, n]`, rows one after another;
// wide `[m, stride]`, 64-byte aligned, for a in 16 bits; stride is k up to a multiple of 64.
extern "C" void product(const int8_t* a, const float* s, const int8_t* b, const float* r,
                       const float* bias, int16_t* wide, float* y, int64_t m, int64_t n, int64_t k,
                       int64_t stride, int64_t threads) {
    std::vector<uint32_t> row_own(m);
#pragma omp parallel for num_threads(threads)
    for (int64_t t = 0; t < m; t++)
        row_own[t] = widen(a + t * k, k, stride, wide + t * stride);
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(threads)
    for (int64_t t0 = 0; t0 < m; t0 += BLOCK)
        for (int64_t o0 = 0; o0 < n; o0 += PANEL) {
            alignas(64) int16_t columns[PANEL * DEPTH];
            alignas(64) uint32_t sums[BLOCK * PANEL] = {};
            uint32_t column_own[PANEL] = {};
            int64_t rows = std::min(BLOCK, m - t0), channels = std::min(PANEL, n - o0);
            for (int64_t i0 = 0; i0 < k; i0 += DEPTH) {
                int64_t depth = std::min(DEPTH, stride - i0), real = std::min(DEPTH, k - i0);
                for (int64_t c = 0; c < PANEL; c++) {
                    // Past the last channel and row, the last once more, whose sums are not read.
                    const int8_t* from = b + std::min(o0 + c, n - 1) * k + i0;
                    column_own[c] += widen(from, real, depth, columns + c * DEPTH);
                }
                for (int64_t t = 0; t < rows; t += ROWS) {
                    const int16_t* row[ROWS];
                    for (int j = 0; j < ROWS; j++)
                        row[j] = wide + std::min(t0 + t + j, m - 1) * stride + i0;
                    for (int64_t c = 0; c < PANEL; c += COLUMNS)
                        multiply(row, columns + c * DEPTH, depth, sums + t * PANEL + c);
                }
            }
            for (int64_t t = 0; t < rows; t++)
                for (int64_t c = 0; c < channels; c++) {
                    int32_t sum = sums[t * PANEL + c] - row_own[t0 + t] - column_own[c];
                    float scaled = sum * s[t0 + t] * r[o0 + c];
                    y[(t0 + t) * n + o0 + c] = bias ? scaled + bias[o0 + c] : scaled;
                }
        }
}
