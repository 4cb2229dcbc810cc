#include "cache/store.hpp"

#include <ATen/ops/bmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>

#include <cstring>

#include "codes/matrix.hpp"

namespace palu {
namespace {

constexpr int64_t FEW_ROWS = 64; // of a product that is made here
constexpr int64_t CODING = 64;   // multiplications that coding a number is counted as

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

// float64 [kept tokens, kv_heads * dim].
at::Tensor wide_rows(const at::Tensor& heads, const Kept& kept) {
  at::Tensor rows = heads;
  int64_t count = static_cast<int64_t>(kept.tokens.size());
  if (heads.size(0) != count || kept.tokens.back() != count - 1) {
    at::Tensor index = at::empty({count}, heads.options().dtype(at::kLong));
    std::memcpy(index.mutable_data_ptr(), kept.tokens.data(), count * sizeof(int64_t));
    rows = at::index_select(heads, 0, index);
  }
  return rows.reshape({count, -1}).to(at::kDouble);
}

// The usual centres of keys in blocks of positions, float64 [blocks, kv_heads * dim]; summed in float32.
at::Tensor centres(const Layer& layer, const Kept& kept, const at::Tensor& features) {
  int64_t width = layer.kv_heads * layer.key_dim;
  at::Tensor out = at::empty({static_cast<int64_t>(kept.blocks.size()), width}, features.options().dtype(at::kDouble));
  double* to = out.mutable_data_ptr<double>();
  for (int64_t block : kept.blocks) {
    const float* row = features.const_data_ptr<float>() + block * layer.features;
    for (int64_t i = 0; i < width; i++) *to++ = layer.usual_centre(i, row);
  }
  return out;
}

// Rows [rows, groups * width] times the encoder: float64 [groups, rows, columns of the encoder]. Few rows are
// multiplied here: torch converts and copies more than it multiplies.
at::Tensor numbers_of(const SideStore& side, const at::Tensor& rows) {
  int64_t count = rows.size(0), groups = side.encoder.size(0), width = side.encoder.size(1), columns = side.encoder.size(2);
  if (count > FEW_ROWS) return at::bmm(rows.view({count, groups, width}).transpose(0, 1), side.encoder.to(at::kDouble));
  at::Tensor out = at::empty({groups, count, columns}, rows.options());
  const double* from = rows.const_data_ptr<double>();
  const float* encoder = side.encoder.const_data_ptr<float>();
  double* to = out.mutable_data_ptr<double>();
  int64_t blocks = columns / COLUMNS;
  auto multiply = [&](int64_t i) {
    int64_t group = i / blocks, column = i % blocks * COLUMNS;
    product(count, COLUMNS, width, from + group * width, groups * width, encoder + group * width * columns + column,
            columns, to + group * count * columns + column, columns);
  };
  in_stages({{groups * blocks, multiply}}, count * groups * width * columns);
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
  at::Tensor numbers_k = numbers_of(store.key, at::cat({wide_rows(key, kept), centres(layer, kept, features)}));
  at::Tensor numbers_v = numbers_of(store.value, wide_rows(value, kept));
  const double *of_k = numbers_k.const_data_ptr<double>(), *of_v = numbers_v.const_data_ptr<double>();
  const double* mean = store.value_mean.const_data_ptr<double>();
  int64_t rows_k = numbers_k.size(1), row_k = numbers_k.size(2), row_v = numbers_v.size(2), block_size = cache.size(2);
  uint8_t* start = cache.mutable_data_ptr<uint8_t>();
  auto code = [&](int64_t i) {
    int64_t token = i / layer.groups, group = i % layer.groups, slot = kept.slots[token];
    uint8_t* to = start + slot / block_size * cache.stride(0) + group * cache.stride(1) + slot % block_size * cache.stride(2);
    const double* of_group = of_k + group * rows_k * row_k;
    write(store.key, of_group + token * row_k, of_group + (count + kept.centre[token]) * row_k, group, to,
          to + layer.key.start);
    write(store.value, of_v + (group * count + token) * row_v, mean + group * layer.value.rank, group, to + 2,
          to + layer.value.start);
  };
  in_stages({{count * layer.groups, code}}, count * layer.groups * (layer.key.rank + layer.value.rank) * CODING);
}

} // namespace palu
