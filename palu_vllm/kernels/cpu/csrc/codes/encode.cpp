#include "codes/encode.hpp"

#include <c10/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace palu {
namespace {

constexpr int TOGETHER = 64; // numbers
constexpr float LARGEST = std::numeric_limits<float>::max();
constexpr uint16_t HALF_NAN = 0x7e00, HALF_ONE = 0x3c00;

uint16_t half_bits(float x) { return c10::Half(x).x; }

// The nearest whole number, the lower one of two; exact, which adding a half would not be.
int nearest_whole(float x) {
  double number = x, below = std::floor(number);
  return static_cast<int>(below) + (number - below > 0.5);
}

// `y` over `size`, 0 where that is not finite.
void divide(const float* y, float size, int count, float* ratios) {
  for (int i = 0; i < count; i++) {
    float ratio = y[i] / size;
    ratios[i] = std::fabs(ratio) <= LARGEST ? ratio : 0.f;
  }
}

// Numbers after numbers are compared with one threshold, which vectors do.
void codes_of(const Tier& tier, const Coder& coder, const float* y, float size, uint8_t* codes) {
  float ratios[TOGETHER];
  int32_t found[TOGETHER];
  for (int first = 0; first < tier.size; first += TOGETHER) {
    int count = std::min(TOGETHER, tier.size - first);
    divide(y + first, size, count, ratios);
    if (tier.bits == 8) {
      for (int i = 0; i < count; i++)
        found[i] = nearest_whole(std::min(std::max(ratios[i], -127.f), 127.f)) + 128;
    } else {
      std::fill_n(found, count, 0);
      for (float threshold : coder.thresholds)
        for (int i = 0; i < count; i++) found[i] += threshold < ratios[i];
    }
    for (int i = 0; i < count; i++) codes[first + i] = static_cast<uint8_t>(found[i]);
  }
}

void pack_plane(const uint8_t* codes, int size, int shift, int width, uint8_t* plane) {
  int bytes = (size * width + 7) / 8;
  std::memset(plane, 0, bytes);
  for (int part = 0; part * bytes < size; part++)
    for (int j = 0; j < bytes && part * bytes + j < size; j++)
      plane[j] |= static_cast<uint8_t>((codes[part * bytes + j] >> shift & ((1 << width) - 1)) << part * width);
}

void pack(const Tier& tier, const uint8_t* codes, uint8_t* plane) {
  int width = low_width(tier.bits);
  pack_plane(codes, tier.size, 0, width, plane);
  if (has_high_plane(tier.bits)) pack_plane(codes, tier.size, width, 1, plane + (tier.size * width + 7) / 8);
}

float size_of(const Encoder& encoder, const float* y) {
  double sum = 0;
  for (size_t t = 0; t < encoder.coders.size(); t++) {
    const Tier& tier = encoder.side->tiers[t];
    for (int i = tier.number; i < tier.number + tier.size; i++) {
      double number = y[i] * encoder.coders[t].unit;
      sum += number * number;
    }
  }
  return static_cast<float>(std::sqrt(sum / encoder.side->rank));
}

// The float16 scale of least squared error for the levels nearest to `y` over `size`.
uint16_t fitted_scale(const Encoder& encoder, const float* y, float size, uint8_t* codes) {
  double dot = 0, square = 0;
  for (size_t t = 0; t < encoder.coders.size(); t++) {
    const Tier& tier = encoder.side->tiers[t];
    const Coder& coder = encoder.coders[t];
    codes_of(tier, coder, y + tier.number, size, codes);
    double products = 0, squares = 0;
    for (int i = 0; i < tier.size; i++) {
      float level = coder.levels[codes[i]];
      products += y[tier.number + i] * level;
      squares += level * level;
    }
    dot += coder.weight * products;
    square += coder.weight * squares;
  }
  return half_bits(static_cast<float>(dot / square));
}

} // namespace

Encoder make_encoder(const Side& side, const std::vector<int64_t>& levels, const std::vector<double>& units) {
  Encoder encoder{&side, {}};
  for (const Tier& tier : side.tiers) {
    Coder coder;
    double unit = tier.bits == 8 ? units.at(4) : tier.bits == 16 ? 1. : units.at(tier.bits - 2);
    coder.unit = static_cast<float>(unit);
    coder.weight = unit * unit;
    for (int code = 0; code < 1 << tier.bits && tier.bits <= 8; code++)
      coder.levels.push_back(tier.bits == 8 ? code - 128.f : float(levels.at(first_level(tier.bits) + code)));
    for (int code = 1; code < 1 << tier.bits && tier.bits < 8; code++)
      coder.thresholds.push_back((coder.levels[code] + coder.levels[code - 1]) / 2);
    encoder.coders.push_back(coder);
  }
  return encoder;
}

uint16_t encode(const Encoder& encoder, const float* y, uint8_t* codes, uint8_t* payload) {
  const Side& side = *encoder.side;
  std::memset(payload, 0, side.bytes);
  if (!side.quantized) {
    for (int i = 0; i < side.rank; i++) {
      uint16_t bits = half_bits(y[i]);
      std::memcpy(payload + 2 * i, &bits, 2);
    }
    return HALF_ONE;
  }
  float size = size_of(encoder, y);
  uint16_t scale = size == 0.f ? 0 : fitted_scale(encoder, y, size, codes);
  if (!std::isfinite(size) || (scale & 0x7c00) == 0x7c00) return HALF_NAN;
  float wide = c10::detail::fp16_ieee_to_fp32_value(scale);
  for (size_t t = 0; t < side.tiers.size(); t++) {
    const Tier& tier = side.tiers[t];
    codes_of(tier, encoder.coders[t], y + tier.number, wide, codes);
    pack(tier, codes, payload + tier.byte - side.start);
  }
  return scale;
}

} // namespace palu
