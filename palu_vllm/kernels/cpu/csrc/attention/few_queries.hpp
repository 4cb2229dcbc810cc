// Attention of requests with few queries each: all decodes of a step, and short ends of prompts.
#pragma once
#include "cache/layer.hpp"

namespace palu {

// One request's queries: rows of `query` and `out` from `row` on, the last of them at position length - 1.
struct Request {
  const int32_t* table;
  int64_t row, queries, length;
};

// `query` float32 [tokens, heads, key_dim] and `out` [tokens, heads, value_dim], contiguous, where `requests` follow one
// another.
void attend_few(const Layer& layer, const Cache& cache, const float* query, int64_t tokens, const float* features,
                const std::vector<Request>& requests, float* out);

} // namespace palu
