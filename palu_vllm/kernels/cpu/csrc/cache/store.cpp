#include "cache/store.hpp"

#include <ATen/ops/bmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>

#include <cstring>

namespace palu {
namespace {

// Tokens that have a slot, and of every one its row among the distinct blocks of positions.
struct Kept {
  std::vector<int64_t> tokens, slots, centre, blocks;
};

Kept kept_tokens(const int64_t* positions, const int64_t* slots, int64_t tokens) {
  Kept kept;
  for (int64_t token = 0; token < tokens; token++) {
    if (slots[token] < 0) continue;
    int64_t block = positions[token] / BLOCK;
    if (kept.blocks.empty() || kept.blocks.back() != block) kept.blocks.push_back(block);
    kept.tokens.push_back(token);
    kept.slots.push_back(slots[token]);
    kept.centre.push_back(static_cast<int64_t>(kept.blocks.size()) - 1);
  }
  return kept;
}

// float64 [groups, tokens, width] of the kept rows of [tokens, kv_heads, dim].
at::Tensor grouped(const Layer& layer, const at::Tensor& heads, const Kept& kept) {
  at::Tensor rows = heads;
  int64_t count = static_cast<int64_t>(kept.tokens.size());
  if (heads.size(0) != count || kept.tokens.back() != count - 1) {
    at::Tensor index = at::empty({count}, heads.options().dtype(at::kLong));
    std::memcpy(index.mutable_data_ptr(), kept.tokens.data(), count * sizeof(int64_t));
    rows = at::index_select(heads, 0, index);
  }
  return rows.reshape({count, layer.groups, -1}).transpose(0, 1).to(at::kDouble);
}

// The usual centres of keys in blocks of positions, float64 [groups, blocks, width]; summed in float32.
at::Tensor centres(const Layer& layer, const Kept& kept, const at::Tensor& features) {
  int64_t blocks = static_cast<int64_t>(kept.blocks.size()), group_width = layer.group_size() * layer.key_dim;
  at::Tensor out = at::empty({layer.groups, blocks, group_width}, features.options().dtype(at::kDouble));
  double* to = out.mutable_data_ptr<double>();
  for (int64_t group = 0; group < layer.groups; group++)
    for (int64_t block : kept.blocks) {
      const float* row = features.const_data_ptr<float>() + block * layer.features;
      for (int64_t i = 0; i < group_width; i++) *to++ = layer.usual_centre(group * group_width + i, row);
    }
  return out;
}

// Numbers around whichever centre is nearer to `y`; says whether it is the first token's.
bool around_nearer(const double* y, const double* usual, const double* first, int rank, float* out, float* other) {
  float square = 0.f, other_square = 0.f;
  for (int i = 0; i < rank; i++) {
    out[i] = static_cast<float>(y[i] - usual[i]);
    other[i] = static_cast<float>(y[i] - first[i]);
    square += out[i] * out[i];
    other_square += other[i] * other[i];
  }
  if (!(other_square < square)) return false;
  std::memcpy(out, other, rank * sizeof(float));
  return true;
}

// One side of a slot.
void write(const SideStore& side, const double* y, const double* usual, int64_t group, uint8_t* scale, uint8_t* payload) {
  static thread_local std::vector<float> numbers;
  static thread_local std::vector<uint8_t> codes;
  int rank = side.encode.side->rank;
  float* out = scratch(numbers, 2 * rank);
  const double* sink = side.sink.const_data_ptr<double>() + group * rank;
  bool first = around_nearer(y, usual, sink, rank, out, out + rank);
  uint16_t bits = encode(side.encode, out, scratch(codes, rank), payload);
  if (first) bits ^= 0x8000;
  std::memcpy(scale, &bits, 2);
}

} // namespace

void store(const Layer& layer, const Store& store, const at::Tensor& key, const at::Tensor& value,
           const int64_t* positions, const int64_t* slots, int64_t tokens, const at::Tensor& features, at::Tensor cache) {
  Kept kept = kept_tokens(positions, slots, tokens);
  int64_t count = static_cast<int64_t>(kept.tokens.size());
  if (!count) return;
  at::Tensor rows = at::cat({grouped(layer, key, kept), centres(layer, kept, features)}, 1);
  at::Tensor numbers_k = at::bmm(rows, store.key.encoder), numbers_v = at::bmm(grouped(layer, value, kept), store.value.encoder);
  const double *of_k = numbers_k.const_data_ptr<double>(), *of_v = numbers_v.const_data_ptr<double>();
  const double* mean = store.value_mean.const_data_ptr<double>();
  int rank_k = layer.key.rank, rank_v = layer.value.rank;
  int64_t rows_k = rows.size(1), block_size = cache.size(2);
  uint8_t* start = cache.mutable_data_ptr<uint8_t>();
  at::parallel_for(0, count * layer.groups, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      int64_t token = i / layer.groups, group = i % layer.groups, slot = kept.slots[token];
      uint8_t* to = start + slot / block_size * cache.stride(0) + group * cache.stride(1) + slot % block_size * cache.stride(2);
      const double* of_group = of_k + group * rows_k * rank_k;
      write(store.key, of_group + token * rank_k, of_group + (count + kept.centre[token]) * rank_k, group, to,
            to + layer.key.start);
      write(store.value, of_v + (group * count + token) * rank_v, mean + group * rank_v, group, to + 2, to + layer.value.start);
    }
  });
}

} // namespace palu
