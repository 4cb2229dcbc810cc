// Attention of few queries over codes: nothing is decoded but to levels.
#pragma once
#include "cache/layer.hpp"

namespace palu {

// Queries in the basis of codes; a row is a query head of a group, rows of one query after those of the one before.
struct Rows {
  int count;
  const int16_t* query;  // [count, key.padded]
  const float* unit;     // [count]: what a step of `query` is worth
  const float* folded;   // [count, features]: a product with a block's features is the score of its usual centre
  const float* sink;     // [count]: the score of the first token's centre
  int64_t position;      // of the first query
  int heads;             // rows of a query
};

// sum_t exp(score_t - peak), that of tokens with the first token's centre of V alone, and of levels times scales.
struct State {
  float* peak;  // [rows]
  float* total; // [rows]
  float* first; // [rows]
  float* sums;  // [rows, value.padded]
};

// Rows over positions begin .. end - 1 of one request, at most CHUNK of them, which every request's `table` lists.
struct Piece {
  Rows rows;
  int64_t group, begin, end;
  const int32_t* table;
};

void attend_piece(const Layer& layer, const Cache& cache, const float* features, const Piece& piece, const State& state);

} // namespace palu
