#include "codes/form.hpp"

#include <algorithm>
#include <cstring>

namespace palu {
namespace {

int plane_bytes(int size, int width) { return (size * width + 7) / 8; }

// Where bit `number` of the `width` bits of numbers `first .. first + 15` is, in a plane of `bytes` bytes.
Bits find_bits(int first, int start, int bytes, int width, int number) {
  int begin[2] = {bytes < LANES ? 0 : first % bytes, 0};
  Bits bits{{start + begin[0], start + begin[1]}, true, {}, {}};
  std::memset(bits.take, 0x80, sizeof(bits.take));
  for (int lane = 0; lane < LANES; lane++) {
    int byte = (first + lane) % bytes;
    bool wrapped = byte < begin[0];
    bits.take[wrapped][lane] = static_cast<uint8_t>(byte - begin[wrapped]);
    bits.bit[lane] = static_cast<uint8_t>(1 << ((first + lane) / bytes * width + number & 7));
    bits.one_window &= !wrapped;
  }
  return bits;
}

void add_steps(std::vector<Step>& steps, const Tier& tier, const std::vector<int64_t>& levels) {
  int width = low_width(tier.bits);
  int bytes = plane_bytes(tier.size, width);
  bool picked = width == 2 && bytes < LANES;
  int row = picked ? tier.size : bytes; // numbers that follow each other
  for (int part = 0; part * row < tier.size; part++) {
    int numbers = std::min(row, tier.size - part * row);
    for (int j = 0; j < numbers; j += LANES) {
      Step step{};
      step.bits = tier.bits;
      step.reading = picked ? Reading::picked : Reading::shifted;
      int first = part * row + j;
      step.dst = tier.number + first;
      step.low = tier.byte + j;
      step.shift = part * width;
      for (int bit = 0; bit < width && picked; bit++)
        step.low_bits[bit] = find_bits(first, tier.byte, bytes, width, bit);
      for (int code = 0; code < 32 && tier.bits != 8; code++)
        step.table[code / 16][code % 16] = static_cast<int8_t>(levels[first_level(tier.bits) + code % (1 << tier.bits)]);
      if (has_high_plane(tier.bits))
        step.high = find_bits(first, tier.byte + bytes, plane_bytes(tier.size, 1), 1, 0);
      steps.push_back(step);
    }
  }
}

} // namespace

Side make_side(const std::vector<int64_t>& sizes_and_bits, const std::vector<int64_t>& levels, int start) {
  Side side;
  side.start = start;
  for (size_t i = 0; i + 1 < sizes_and_bits.size(); i += 2) {
    Tier tier{int(sizes_and_bits[i]), int(sizes_and_bits[i + 1]), side.rank, start + side.bytes};
    side.quantized = tier.bits != 16;
    side.rank += tier.size;
    side.bytes += plane_bytes(tier.size, low_width(tier.bits));
    if (has_high_plane(tier.bits)) side.bytes += plane_bytes(tier.size, 1);
    side.tiers.push_back(tier);
    if (side.quantized) add_steps(side.steps, tier, levels);
  }
  side.bytes = (side.bytes + 3) / 4 * 4;
  int end = side.rank;
  for (const Step& step : side.steps) end = std::max(end, step.dst + LANES);
  side.width = (side.rank + LANES - 1) / LANES * LANES;
  side.padded = ((end + LANES - 1) / LANES | 1) * LANES;
  return side;
}

} // namespace palu
