#include "tile.hpp"

#include <c10/util/Half.h>

#include <cmath>
#include <cstring>

namespace palu {
namespace {

void read_scale(const uint8_t* bytes, float& size, float& first, bool& broken) {
  uint16_t bits;
  std::memcpy(&bits, bytes, 2);
  float scale = c10::detail::fp16_ieee_to_fp32_value(bits);
  broken = !std::isfinite(scale);
  first = std::signbit(scale) ? 1.f : 0.f;
  size = broken ? 0.f : std::abs(scale);
}

} // namespace

void locate(const Layer& layer, const Cache& cache, const int32_t* table, int64_t group, int64_t begin, int64_t end,
            int64_t base, std::vector<uint8_t>& last, Tile& tile) {
  std::memset(static_cast<void*>(&tile), 0, sizeof(tile));
  tile.base = base;
  tile.begin = static_cast<int>(std::max<int64_t>(begin - base, 0));
  tile.end = static_cast<int>(std::min<int64_t>(end - base, TILE));
  int64_t bytes = layer.value.start + layer.value.bytes;
  cache.each_slot(table, group, base + tile.begin, base + tile.end, [&](int64_t position, const uint8_t* slot) {
    int64_t t = position - base;
    tile.slots[t] = slot;
    if (slot + bytes + OVERREAD > cache.end) {
      tile.slots[t] = scratch(last, bytes + OVERREAD);
      std::memcpy(last.data(), slot, bytes);
    }
    read_scale(slot, tile.scale_k[t], tile.first_k[t], tile.broken_k[t]);
    read_scale(slot + 2, tile.scale_v[t], tile.first_v[t], tile.broken_v[t]);
    tile.any_first |= tile.first_k[t] + tile.first_v[t] > 0.f;
    tile.any_broken |= tile.broken_k[t] | tile.broken_v[t];
  });
  cache.each_slot(table, group, base + TILE, std::min(end, base + 2 * TILE), [&](int64_t, const uint8_t* slot) {
    for (int64_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(slot + byte);
  });
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
