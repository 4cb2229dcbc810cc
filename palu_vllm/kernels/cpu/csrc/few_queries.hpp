// Attention of requests with few queries each: all decodes of a step, and short ends of prompts.
#pragma once
#include "layer.hpp"

namespace palu {

// One request's queries: rows of `query` and `out` from `row` on, the last of them at position length - 1.
struct Request {
  const int32_t* table;
  int64_t row, queries, length;
};

// The weighted means of levels with the shares of both centres, float32 [kv_heads, tokens * kv_queries, rank_v + 2], a
// factor of `value_map`. `query` float32 [tokens, heads, key_dim], contiguous, where `requests` follow one another.
at::Tensor attend_few(const Layer& layer, const Cache& cache, const at::Tensor& query, const float* features,
                      const std::vector<Request>& requests);

} // namespace palu
