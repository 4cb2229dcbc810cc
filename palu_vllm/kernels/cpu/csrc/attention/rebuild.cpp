#include "attention/rebuild.hpp"

#include <c10/util/Half.h>

#include <cstring>

namespace palu {
namespace {

struct Workspace {
  std::vector<int8_t> levels;
  std::vector<float> numbers, turned;
};

// Numbers of a tile times their scales, [TILE, rank]; zeros for tokens that are not wanted.
void numbers_of(const Side& side, const Tile& tile, const float* scales, Workspace& space) {
  float* numbers = scratch(space.numbers, int64_t(TILE) * side.rank);
  std::memset(numbers, 0, sizeof(float) * TILE * side.rank);
  int8_t* levels = scratch(space.levels, int64_t(TILE) * side.padded);
  if (side.quantized) decode_plain(side, tile.slots + tile.even(), tile.count(), levels);
  for (int t = tile.begin; t < tile.end; t++, numbers += side.rank) {
    if (t == tile.begin) numbers += int64_t(t) * side.rank;
    const int8_t* row = levels + int64_t(t - tile.even()) * side.padded;
    if (side.quantized) {
      for (int i = 0; i < side.rank; i++) numbers[i] = scales[t] * row[i];
      continue;
    }
    for (int i = 0; i < side.rank; i++) {
      uint16_t bits;
      std::memcpy(&bits, tile.slots[t] + side.start + 2 * i, 2);
      numbers[i] = scales[t] * c10::detail::fp16_ieee_to_fp32_value(bits);
    }
  }
}

// [TILE, rank] to [rank, TILE].
const float* transposed(const float* numbers, int rank, std::vector<float>& into) {
  float* out = scratch(into, int64_t(TILE) * rank);
  for (int from = 0; from < rank; from += 8)
    for (int t = 0; t < TILE; t++)
      for (int i = from; i < std::min(from + 8, rank); i++) out[int64_t(i) * TILE + t] = numbers[int64_t(t) * rank + i];
  return out;
}

// Adds every token's centre to number `i` of all heads' keys, `row` [TILE].
void add_key_centre(const Layer& layer, const Tile& tile, const float* features, int64_t i, float* row) {
  float sink = layer.sink_k.const_data_ptr<float>()[i];
  for (int from = 0; from < TILE; from += BLOCK) {
    if (from + BLOCK <= tile.begin || from >= tile.end) continue;
    float usual = layer.usual_centre(i, features + (tile.base + from) / BLOCK * layer.features);
    for (int t = from; t < from + BLOCK; t++) row[t] += tile.first_k[t] > 0.f ? sink : usual;
  }
}

// Adds every token's centre to the values of a head, `values` [TILE, padded_dim].
void add_value_centre(const Layer& layer, const Tile& tile, int64_t head, float* values) {
  const float* mean = layer.mean_v.const_data_ptr<float>() + head * layer.value_dim;
  const float* sink = layer.sink_v.const_data_ptr<float>() + head * layer.value_dim;
  for (int t = tile.begin; t < tile.end; t++) {
    const float* centre = tile.first_v[t] > 0.f ? sink : mean;
    for (int64_t i = 0; i < layer.value_dim; i++) values[t * layer.padded_dim() + i] += centre[i];
  }
}

} // namespace

void rebuild(const Layer& layer, const Tile& tile, int64_t group, const float* features, const Whole& whole) {
  static thread_local Workspace space;
  int rank_k = layer.key.rank, rank_v = layer.value.rank;
  int64_t size = layer.group_size(), dim = layer.key_dim, padded = layer.padded_dim();
  numbers_of(layer.key, tile, tile.scale_k, space);
  const float* columns = transposed(space.numbers.data(), rank_k, space.turned);
  const float* decoder = layer.decoder_k.const_data_ptr<float>() + group * size * dim * rank_k;
  product(size * dim, TILE, rank_k, decoder, rank_k, columns, TILE, whole.keys, TILE);
  for (int64_t i = 0; i < size * dim; i++)
    add_key_centre(layer, tile, features, group * size * dim + i, whole.keys + i * TILE);
  numbers_of(layer.value, tile, tile.scale_v, space);
  for (int64_t head = 0; head < size; head++) {
    const float* map = layer.value_map.const_data_ptr<float>() + (group * size + head) * (rank_v + 2) * padded;
    float* values = whole.values + head * TILE * padded;
    product(TILE, padded, rank_v, space.numbers.data(), rank_v, map, padded, values, padded);
    add_value_centre(layer, tile, group * size + head, values);
  }
}

} // namespace palu
