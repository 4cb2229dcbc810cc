#include "cache/tile.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

namespace palu {
namespace {

// float16 scales to sizes, signs and whether they are finite, in a form that compilers vectorise; exact, subnormals too.
void read_scales(const int32_t* __restrict halves, float* __restrict size, float* __restrict first,
                 int32_t* __restrict broken, Tile& tile) {
  int32_t any_first = 0, any_broken = 0;
  for (int t = 0; t < TILE; t++) {
    int32_t is_broken = -((halves[t] & 0x7c00) == 0x7c00);
    size[t] = std::bit_cast<float>((halves[t] & 0x7fff & ~is_broken) << 13) * 0x1p112f;
    broken[t] = is_broken & 1;
    any_broken |= is_broken & 1;
  }
  for (int t = 0; t < TILE; t++) {
    int32_t is_first = halves[t] >> 15 & 1;
    first[t] = static_cast<float>(is_first);
    any_first |= is_first;
  }
  tile.any_first |= any_first;
  tile.any_broken |= any_broken;
}

} // namespace

void locate(const Layer& layer, const Cache& cache, const int32_t* table, int64_t group, int64_t begin, int64_t end,
            int64_t base, std::vector<uint8_t>& last, Tile& tile) {
  alignas(32) int32_t scales_k[TILE], scales_v[TILE];
  tile.base = base;
  tile.any_first = tile.any_broken = 0;
  tile.begin = static_cast<int>(std::max<int64_t>(begin - base, 0));
  tile.end = static_cast<int>(std::min<int64_t>(end - base, TILE));
  if (tile.begin > 0 || tile.end < TILE) {
    std::fill_n(scales_k, TILE, 0);
    std::fill_n(scales_v, TILE, 0);
  }
  int64_t bytes = layer.value.start + layer.value.bytes;
  cache.each_slot(table, group, base + tile.begin, base + tile.end, [&](int64_t position, const uint8_t* slot) {
    int64_t t = position - base;
    tile.slots[t] = slot;
    if (slot + bytes + OVERREAD > cache.end) {
      tile.slots[t] = scratch(last, bytes + OVERREAD);
      std::memcpy(last.data(), slot, bytes);
    }
    uint16_t both[2];
    std::memcpy(both, slot, 4);
    scales_k[t] = both[0];
    scales_v[t] = both[1];
  });
  read_scales(scales_k, tile.scale_k, tile.first_k, tile.broken_k, tile);
  read_scales(scales_v, tile.scale_v, tile.first_v, tile.broken_v, tile);
  if (tile.begin & 1) tile.slots[tile.begin - 1] = tile.slots[tile.begin];
  if (tile.end & 1) tile.slots[tile.end] = tile.slots[tile.end - 1];
}

void hide(const Layer& layer, const Tile& tile, int64_t position, float* scores) {
  int64_t begin = tile.begin, end = std::min<int64_t>(tile.end, position - tile.base + 1);
  if (layer.window) begin = std::max<int64_t>(begin, position - tile.base - layer.window + 1);
  for (int64_t t = 0; t < std::min<int64_t>(begin, TILE); t++) scores[t] = NONE;
  for (int64_t t = std::max<int64_t>(end, 0); t < TILE; t++) scores[t] = NONE;
}

} // namespace palu
