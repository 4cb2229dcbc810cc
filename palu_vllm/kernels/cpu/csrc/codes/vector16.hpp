// Sixteen bytes of each of two tokens, and products of int8 levels with int16 numbers: with AVX2, or in plain loops that
// a compiler turns into whatever the machine has.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace palu {

#if defined(__AVX2__)

using Bytes = __m256i;

inline __m256i both(const void* bytes) {
  return _mm256_broadcastsi128_si256(_mm_load_si128(static_cast<const __m128i*>(bytes)));
}
inline Bytes load_two(const uint8_t* first, const uint8_t* second) {
  __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(first));
  return _mm256_inserti128_si256(_mm256_castsi128_si256(low), *reinterpret_cast<const __m128i_u*>(second), 1);
}
inline Bytes flip_sign(Bytes x) { return _mm256_xor_si256(x, _mm256_set1_epi8(-128)); }
inline Bytes bits_at(Bytes x, int shift, int mask) {
  return _mm256_and_si256(_mm256_srl_epi16(x, _mm_cvtsi32_si128(shift)), _mm256_set1_epi8(static_cast<char>(mask)));
}
inline Bytes take(Bytes x, const uint8_t* places) { return _mm256_shuffle_epi8(x, both(places)); }
inline Bytes either(Bytes x, Bytes y) { return _mm256_or_si256(x, y); }
inline Bytes all_ones_where(Bytes x, const uint8_t* bit) {
  __m256i bits = both(bit);
  return _mm256_cmpeq_epi8(_mm256_and_si256(x, bits), bits);
}
inline Bytes only(Bytes x, int mask) { return _mm256_and_si256(x, _mm256_set1_epi8(static_cast<char>(mask))); }
inline Bytes pick(Bytes chosen, Bytes x, Bytes y) { return _mm256_blendv_epi8(y, x, chosen); }
inline Bytes look_up(const int8_t* table, Bytes codes) { return _mm256_shuffle_epi8(both(table), codes); }
inline void store_two(int8_t* first, int8_t* second, Bytes x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(first), _mm256_castsi256_si128(x));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(second), _mm256_extracti128_si256(x, 1));
}
inline void store_paired(int8_t* out, Bytes x) {
  __m128i first = _mm256_castsi256_si128(x), second = _mm256_extracti128_si256(x, 1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_unpacklo_epi8(first, second));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 16), _mm_unpackhi_epi8(first, second));
}

#else

struct Bytes {
  uint8_t at[2][16];
};

template <class F> inline Bytes each(F f) {
  Bytes out;
  for (int token = 0; token < 2; token++)
    for (int i = 0; i < 16; i++) out.at[token][i] = static_cast<uint8_t>(f(token, i));
  return out;
}
inline Bytes load_two(const uint8_t* first, const uint8_t* second) {
  Bytes out;
  std::memcpy(out.at[0], first, 16);
  std::memcpy(out.at[1], second, 16);
  return out;
}
inline Bytes flip_sign(const Bytes& x) {
  return each([&](int token, int i) { return x.at[token][i] ^ 128; });
}
inline Bytes bits_at(const Bytes& x, int shift, int mask) {
  return each([&](int token, int i) { return (x.at[token][i] >> shift) & mask; });
}
inline Bytes take(const Bytes& x, const uint8_t* places) {
  return each([&](int token, int i) { return places[i] & 128 ? 0 : x.at[token][places[i]]; });
}
inline Bytes either(const Bytes& x, const Bytes& y) {
  return each([&](int token, int i) { return x.at[token][i] | y.at[token][i]; });
}
inline Bytes all_ones_where(const Bytes& x, const uint8_t* bit) {
  return each([&](int token, int i) { return x.at[token][i] & bit[i] ? 255 : 0; });
}
inline Bytes only(const Bytes& x, int mask) {
  return each([&](int token, int i) { return x.at[token][i] & mask; });
}
inline Bytes pick(const Bytes& chosen, const Bytes& x, const Bytes& y) {
  return each([&](int token, int i) { return chosen.at[token][i] ? x.at[token][i] : y.at[token][i]; });
}
inline Bytes look_up(const int8_t* table, const Bytes& codes) {
  return each([&](int token, int i) { return table[codes.at[token][i]]; });
}
inline void store_two(int8_t* first, int8_t* second, const Bytes& x) {
  std::memcpy(first, x.at[0], 16);
  std::memcpy(second, x.at[1], 16);
}
inline void store_paired(int8_t* out, const Bytes& x) {
  for (int i = 0; i < 16; i++) {
    out[2 * i] = static_cast<int8_t>(x.at[0][i]);
    out[2 * i + 1] = static_cast<int8_t>(x.at[1][i]);
  }
}

#endif

} // namespace palu
