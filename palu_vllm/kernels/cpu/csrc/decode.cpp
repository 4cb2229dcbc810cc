#include "decode.hpp"

#include "vector16.hpp"

namespace palu {
namespace {

// Codes of a step, of two tokens, to levels.
template <int BITS> inline Bytes levels_of(const Step& step, const uint8_t* first, const uint8_t* second) {
  Bytes low = load_two(first + step.low, second + step.low);
  if constexpr (BITS == 8) return flip_sign(low);
  Bytes codes = bits_at(low, step.shift, (1 << low_width(BITS)) - 1);
  if constexpr (has_high_plane(BITS)) {
    Bytes high = take(load_two(first + step.high[0], second + step.high[0]), step.take[0]);
    high = either(high, take(load_two(first + step.high[1], second + step.high[1]), step.take[1]));
    Bytes chosen = all_ones_where(high, step.bit);
    if constexpr (BITS == 5) return pick(chosen, look_up(step.table[1], codes), look_up(step.table[0], codes));
    codes = either(codes, only(chosen, 4));
  }
  return look_up(step.table[0], codes);
}

// The step is a copy: what is written could else be a part of it, for all a compiler knows.
template <int BITS, bool PAIRED>
void run(const Step step, int padded, const uint8_t* const* slots, int count, int8_t* out) {
  for (int token = 0; token < count; token += 2) {
    Bytes levels = levels_of<BITS>(step, slots[token], slots[token + 1]);
    int8_t* row = out + int64_t(token) * padded;
    if constexpr (PAIRED)
      store_paired(row + 2 * step.dst, levels);
    else
      store_two(row + step.dst, row + padded + step.dst, levels);
  }
}

template <bool PAIRED> void decode(const Side& side, const uint8_t* const* slots, int count, int8_t* out) {
  for (const Step& step : side.steps) {
    auto kind = step.bits == 8   ? run<8, PAIRED>
                : step.bits == 5 ? run<5, PAIRED>
                : step.bits == 4 ? run<4, PAIRED>
                : step.bits == 3 ? run<3, PAIRED>
                : step.bits == 2 ? run<2, PAIRED>
                                 : run<1, PAIRED>;
    kind(step, side.padded, slots, count, out);
  }
}

} // namespace

void decode_plain(const Side& side, const uint8_t* const* slots, int count, int8_t* out) {
  decode<false>(side, slots, count, out);
}

void decode_paired(const Side& side, const uint8_t* const* slots, int count, int8_t* out) {
  decode<true>(side, slots, count, out);
}

} // namespace palu
