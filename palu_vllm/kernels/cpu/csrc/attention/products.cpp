#include "attention/products.hpp"

#include <algorithm>

#include "codes/vector16.hpp"

namespace palu {
namespace {

constexpr int64_t LINE = 64; // bytes

// Fetches the slots of the tokens that take the places of `token` and its neighbour.
inline void fetch_two(const Ahead& ahead, int token) {
  if (token >= ahead.count) return;
  const uint8_t *first = ahead.slots[token], *second = ahead.slots[token + 1];
  for (int64_t byte = 0; byte < ahead.bytes; byte += LINE) {
    __builtin_prefetch(first + byte);
    __builtin_prefetch(second + byte);
  }
}

#if defined(__AVX2__)

inline __m256i widened(const int8_t* levels) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(levels)));
}
inline __m256i sixteen(const int16_t* numbers) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(numbers));
}
inline __m256i two_times(const int16_t* pair) {
  int32_t both;
  std::memcpy(&both, pair, 4);
  return _mm256_set1_epi32(both);
}
inline __m256i add_products(__m256i sum, __m256i x, __m256i y) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
  return _mm256_dpwssd_epi32(sum, x, y);
#else
  return _mm256_add_epi32(sum, _mm256_madd_epi16(x, y));
#endif
}

// Keeps a compiler from taking the next products first, for which it would need more registers than there are.
inline __m256i in_this_order(__m256i x) {
  asm volatile("" : "+x"(x));
  return x;
}

// The totals of four sums.
inline __m128i totals(__m256i a, __m256i b, __m256i c, __m256i d) {
  __m256i x = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
  return _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
}

// Products of COUNT rows with the levels of 2 or 4 tokens, which begin at `levels`.
template <int COUNT, int TOKENS>
inline void dots_of(const Side& side, const int8_t* levels, const int16_t* query, int32_t* out) {
  __m256i sum[COUNT][TOKENS]{};
  for (int i = 0; i < side.width; i += 16) {
    if constexpr (TOKENS == 2) { // their levels stay in registers, rows are read once
      __m256i first = widened(levels + i), second = widened(levels + side.padded + i);
#pragma GCC unroll 8
      for (int row = 0; row < COUNT; row++) {
        __m256i numbers = in_this_order(sixteen(query + row * side.padded + i));
        sum[row][0] = in_this_order(add_products(sum[row][0], first, numbers));
        sum[row][1] = in_this_order(add_products(sum[row][1], second, numbers));
      }
    } else { // sums leave no registers for rows
#pragma GCC unroll 4
      for (int token = 0; token < TOKENS; token++) {
        __m256i own = widened(levels + token * side.padded + i);
#pragma GCC unroll 8
        for (int row = 0; row < COUNT; row++)
          sum[row][token] = in_this_order(add_products(sum[row][token], own, sixteen(query + row * side.padded + i)));
      }
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < COUNT; row++) {
    if constexpr (TOKENS == 4) {
      __m128i total = totals(sum[row][0], sum[row][1], sum[row][2], sum[row][3]);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + row * TILE), total);
    } else {
      __m128i total = totals(sum[row][0], sum[row][1], sum[row][0], sum[row][1]);
      _mm_storel_epi64(reinterpret_cast<__m128i*>(out + row * TILE), total);
    }
  }
}

template <int COUNT>
void dots(const Side& side, const int8_t* levels, const int16_t* query, int count, const Ahead& ahead, int32_t* out) {
  int token = 0;
  for (; token + 4 <= count && COUNT <= 3; token += 4) {
    fetch_two(ahead, token);
    fetch_two(ahead, token + 2);
    dots_of<COUNT, 4>(side, levels + token * side.padded, query, out + token);
  }
  for (; token < count; token += 2) {
    fetch_two(ahead, token);
    dots_of<COUNT, 2>(side, levels + token * side.padded, query, out + token);
  }
}

inline void keep_and_add(float* sums, float keep, float unit, __m256i sum) {
  __m256 scaled = _mm256_mul_ps(_mm256_set1_ps(unit), _mm256_cvtepi32_ps(sum));
  _mm256_storeu_ps(sums, _mm256_fmadd_ps(_mm256_set1_ps(keep), _mm256_loadu_ps(sums), scaled));
}

template <int COUNT>
void weighted(const Side& side, const int8_t* paired, const int16_t* weights, int count, const float* keep,
              const float* unit, float* sums) {
  for (int i = 0; i < side.width; i += 16) {
    __m256i sum[COUNT][2]{}; // of rows and numbers i .. i + 7, i + 8 .. i + 15
    const int8_t* levels = paired + 2 * i;
    for (int token = 0; token < count; token += 2, levels += 2 * side.padded) {
      __m256i first = widened(levels), second = widened(levels + 16);
#pragma GCC unroll 8
      for (int row = 0; row < COUNT; row++) {
        __m256i pair = two_times(weights + row * TILE + token);
        sum[row][0] = in_this_order(add_products(sum[row][0], first, pair));
        sum[row][1] = in_this_order(add_products(sum[row][1], second, pair));
      }
    }
#pragma GCC unroll 8
    for (int row = 0; row < COUNT; row++)
#pragma GCC unroll 2
      for (int half = 0; half < 2; half++)
        keep_and_add(sums + row * side.padded + i + 8 * half, keep[row], unit[row], sum[row][half]);
  }
}

#else

template <int COUNT>
void dots(const Side& side, const int8_t* levels, const int16_t* query, int count, const Ahead& ahead, int32_t* out) {
  for (int row = 0; row < COUNT; row++)
    for (int token = 0; token < count; token++) {
      if (row == 0 && token % 2 == 0) fetch_two(ahead, token);
      int32_t sum = 0;
      for (int i = 0; i < side.width; i++)
        sum += int32_t(levels[token * side.padded + i]) * query[row * side.padded + i];
      out[row * TILE + token] = sum;
    }
}

template <int COUNT>
void weighted(const Side& side, const int8_t* paired, const int16_t* weights, int count, const float* keep,
              const float* unit, float* sums) {
  for (int row = 0; row < COUNT; row++)
    for (int i = 0; i < side.width; i++) {
      int32_t sum = 0;
      for (int token = 0; token < count; token++)
        sum += int32_t(weights[row * TILE + token]) * paired[token / 2 * 2 * side.padded + 2 * i + token % 2];
      float& total = sums[row * side.padded + i];
      total = keep[row] * total + unit[row] * static_cast<float>(sum);
    }
}

#endif

template <int COUNT, class F> void with_rows(int rows, F f) {
  if (rows == COUNT)
    f(std::integral_constant<int, COUNT>());
  else if constexpr (COUNT > 1)
    with_rows<COUNT - 1>(rows, f);
}

// f(first row, how many as a constant), rows in equal parts of at most ROWS.
template <class F> void in_parts(int rows, F f) {
  for (int first = 0, left = (rows + ROWS - 1) / ROWS; left > 0; left--) {
    int count = (rows - first + left - 1) / left;
    with_rows<ROWS>(count, [&](auto constant) { f(first, constant); });
    first += count;
  }
}

} // namespace

void dot_products(const Side& side, const int8_t* levels, const int16_t* query, int rows, int count, const Ahead& ahead,
                  int32_t* out) {
  in_parts(rows, [&](int first, auto constant) {
    Ahead once = first ? Ahead{nullptr, 0, 0} : ahead;
    dots<constant()>(side, levels, query + first * side.padded, count, once, out + first * TILE);
  });
}

void weighted_sums(const Side& side, const int8_t* paired, const int16_t* weights, int rows, int count, const float* keep,
                   const float* unit, float* sums) {
  in_parts(rows, [&](int first, auto constant) {
    weighted<constant()>(side, paired, weights + first * TILE, count, keep + first, unit + first,
                         sums + int64_t(first) * side.padded);
  });
}

} // namespace palu
