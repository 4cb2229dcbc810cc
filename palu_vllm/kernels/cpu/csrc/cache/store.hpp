// Keys and values to slots: format/codec/layer_codec.py, bit for bit where its float64 sums round alike.
#pragma once
#include "codes/encode.hpp"
#include "cache/layer.hpp"

namespace palu {

// What one side is stored with; `encoder` float32 [groups, width, rank], columns in whole COLUMNS, zeros past the last;
// the others float64 [groups, rank].
struct SideStore {
  Encoder encode;
  at::Tensor encoder, sink;
};

struct Store {
  SideStore key, value;
  at::Tensor value_mean; // float64 [groups, rank]: numbers of the mean of values
};

// `key` [tokens, kv_heads, key_dim], `value` [tokens, kv_heads, value_dim], `positions` and `slots` int64 [tokens];
// tokens whose slot is negative are left out.
void store(const Layer& layer, const Store& store, const at::Tensor& key, const at::Tensor& value,
           const int64_t* positions, const int64_t* slots, int64_t tokens, const at::Tensor& features, at::Tensor cache);

} // namespace palu
