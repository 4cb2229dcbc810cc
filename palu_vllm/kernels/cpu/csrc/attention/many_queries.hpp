// Attention of a request with many queries: prompts, whole or in parts.
#pragma once
#include "attention/few_queries.hpp"

namespace palu {

// `query` float32 [tokens, heads, key_dim] and `out` [tokens, heads, value_dim], contiguous; the request's rows of both.
void attend_many(const Layer& layer, const Cache& cache, const float* query, const float* features,
                 const Request& request, float* out);

} // namespace palu
