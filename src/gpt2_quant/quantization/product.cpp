// y[t, o] = (sum_i a[t, i] * b[o, i]) * s[t] * r[o] + bias[o] with an exact sum: vpmaddwd multiplies
// 16-bit lanes and adds neighbours, so a vector of sums holds partial sums of one element of y, and
// neither a nor b is rearranged. See product.py.
#include <immintrin.h>

#include <algorithm>
#include <cstdint>

// Written as assembly, because compilers move all multiplications before all additions and then
// spill what they hold. ROWS x COLUMNS sums fill the registers.
#ifdef __AVX512BW__
using Vector = __m512i;
constexpr int ROWS = 6;
static inline void add_products(Vector& sum, Vector a, Vector b) {
    Vector both;
    asm("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+v"(sum), "=&v"(both) : "v"(b), "vm"(a));
}
static inline __m256i halve(Vector x) {
    return _mm256_add_epi32(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
}
#else
using Vector = __m256i;
constexpr int ROWS = 3;
static inline void add_products(Vector& sum, Vector a, Vector b) {
    Vector both;
    asm("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(sum), "=&x"(both) : "x"(b), "xm"(a));
}
static inline __m256i halve(Vector x) { return x; }
#endif
constexpr int COLUMNS = 4, LANES = sizeof(Vector) / sizeof(int16_t);

// PANEL channels of the weight, DEPTH inputs at a time, are widened into the L1 cache and used for
// BLOCK rows, whose share of a stays in the L2 cache.
constexpr int64_t PANEL = 16, DEPTH = 768, BLOCK = 192;

static inline Vector load(const int16_t* x) { return *(const Vector*)x; }

// Adds ROWS x COLUMNS products to sums `[ROWS, PANEL]`.
static inline void multiply(const int16_t* const* a, const int16_t* b, int64_t depth,
                            int32_t* sums) {
    Vector sum[ROWS][COLUMNS] = {};
    for (int64_t i = 0; i < depth; i += LANES) {
#pragma GCC unroll 4
        for (int c = 0; c < COLUMNS; c++) {
            Vector column = load(b + c * DEPTH + i);
#pragma GCC unroll 6
            for (int r = 0; r < ROWS; r++) add_products(sum[r][c], load(a[r] + i), column);
        }
    }
#pragma GCC unroll 6
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

// a int16 `[m, stride]`, zero from k on, 64-byte aligned; stride a multiple of 32; bias or null.
extern "C" void product(const int16_t* a, const float* s, const int8_t* b, const float* r,
                       const float* bias, float* y, int64_t m, int64_t n, int64_t k,
                       int64_t stride, int64_t threads) {
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(threads)
    for (int64_t t0 = 0; t0 < m; t0 += BLOCK)
        for (int64_t o0 = 0; o0 < n; o0 += PANEL) {
            alignas(64) int16_t columns[PANEL * DEPTH];
            alignas(64) int32_t sums[BLOCK * PANEL] = {};
            int64_t rows = std::min(BLOCK, m - t0), channels = std::min(PANEL, n - o0);
            for (int64_t i0 = 0; i0 < k; i0 += DEPTH) {
                int64_t depth = std::min(DEPTH, stride - i0), real = std::min(DEPTH, k - i0);
                for (int64_t c = 0; c < PANEL; c++) {
                    // Past the last channel and row, the last once more, whose sums are not read.
                    const int8_t* from = b + std::min(o0 + c, n - 1) * k + i0;
                    for (int64_t i = 0; i < real; i++) columns[c * DEPTH + i] = from[i];
                    for (int64_t i = real; i < depth; i++) columns[c * DEPTH + i] = 0;
                }
                for (int64_t t = 0; t < rows; t += ROWS) {
                    const int16_t* row[ROWS];
                    for (int j = 0; j < ROWS; j++)
                        row[j] = a + std::min(t0 + t + j, m - 1) * stride + i0;
                    for (int64_t c = 0; c < PANEL; c += COLUMNS)
                        multiply(row, columns + c * DEPTH, depth, sums + t * PANEL + c);
                }
            }
            for (int64_t t = 0; t < rows; t++)
                for (int64_t c = 0; c < channels; c++) {
                    float scaled = sums[t * PANEL + c] * s[t0 + t] * r[o0 + c];
                    y[(t0 + t) * n + o0 + c] = bias ? scaled + bias[o0 + c] : scaled;
                }
        }
}
