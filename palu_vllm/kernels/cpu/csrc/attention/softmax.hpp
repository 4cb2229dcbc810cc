// The softmax of a row of a tile's scores, one tile after the other.
#pragma once
#include "codes/matrix.hpp"
#include "cache/tile.hpp"

#include <ATen/cpu/vec/functional_base.h> // after vec.h, which has it already where vectors are those of AVX2

namespace palu {

inline float sum_of(Vec x) {
  return at::vec::vec_reduce_all<float>([](Vec& a, Vec& b) { return a + b; }, x);
}
inline float largest_of(Vec x) {
  return at::vec::vec_reduce_all<float>([](Vec& a, Vec& b) { return at::vec::maximum(a, b); }, x);
}

inline Vec capped(const Layer& layer, Vec score) {
  return layer.soft_cap > 0.f ? (score / Vec(layer.soft_cap)).tanh() * Vec(layer.soft_cap) : score;
}

inline float largest_of(const float* scores) {
  Vec peak(NONE);
  for (int t = 0; t < TILE; t += WIDE) peak = at::vec::clamp_min(Vec::loadu(scores + t), peak);
  return largest_of(peak);
}

// Scores become probabilities times e^peak; adds their sum, and that of tokens with the first token's centre of V, where
// `first` is given. A token that is not finite makes the total NaN where it is seen.
inline void add_probabilities(const Tile& tile, float peak, float* scores, float& total, float* first) {
  if (tile.any_broken)
    for (int t = tile.begin; t < tile.end; t++)
      if (scores[t] > NONE && (tile.broken_k[t] || (tile.broken_v[t] && scores[t] - peak > -87.f))) total = NAN;
  Vec sum(0.f), of_first(0.f);
  for (int t = 0; t < TILE; t += WIDE) {
    Vec probability = (Vec::loadu(scores + t) - Vec(peak)).exp_u20();
    sum = sum + probability;
    if (tile.any_first) of_first = at::vec::fmadd(probability, Vec::loadu(tile.first_v + t), of_first);
    probability.store(scores + t);
  }
  total += sum_of(sum);
  if (first && tile.any_first) *first += sum_of(of_first);
}

// What the sums so far are multiplied by when the largest score becomes `peak`.
inline float kept(float before, float peak) { return before == peak ? 1.f : std::exp(before - peak); }

} // namespace palu
