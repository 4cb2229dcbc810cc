// Products of a tile's int8 levels with int16 queries and weights, summed in int32, which holds them exactly.
#pragma once
#include "codes/decode.hpp"

namespace palu {

// Rows that share one load of the levels; two tokens or two vectors of as many rows are twelve sums in registers.
constexpr int ROWS = 6;

// Slots that are read next, one per token of the tile, and their size: fetched a few at a time while products are made.
struct Ahead {
  const uint8_t* const* slots;
  int count;
  int64_t bytes;
};

// out[row * TILE + t] = sum_i levels[t * padded + i] * query[row * padded + i] for i < side.width, t < count (even).
void dot_products(const Side& side, const int8_t* levels, const int16_t* query, int rows, int count, const Ahead& ahead,
                  int32_t* out);

// sums[row * padded + i] = keep[row] * itself + unit[row] * sum_t weights[row * TILE + t] * level i of token t, of paired
// levels and tokens t < count (even).
void weighted_sums(const Side& side, const int8_t* paired, const int16_t* weights, int rows, int count, const float* keep,
                   const float* unit, float* sums);

} // namespace palu
