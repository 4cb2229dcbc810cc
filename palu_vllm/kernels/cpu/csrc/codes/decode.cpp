#include "codes/decode.hpp"

#include "codes/vector16.hpp"

namespace palu {
namespace {

// All ones where a bit of two tokens is set.
template <bool ONE_WINDOW> inline Bytes set(const Bits& bits, const uint8_t* first, const uint8_t* second) {
  Bytes found = take(load_two(first + bits.window[0], second + bits.window[0]), bits.take[0]);
  if constexpr (!ONE_WINDOW)
    found = either(found, take(load_two(first + bits.window[1], second + bits.window[1]), bits.take[1]));
  return all_ones_where(found, bits.bit);
}

// The codes of a step, without the bit of a high plane, of two tokens.
template <int WIDTH, Reading READING> inline Bytes low_codes(const Step& step, const uint8_t* first, const uint8_t* second) {
  if constexpr (READING == Reading::shifted)
    return bits_at(load_two(first + step.low, second + step.low), step.shift, (1 << WIDTH) - 1);
  Bytes low = only(set<true>(step.low_bits[0], first, second), 1);
  return either(low, only(set<true>(step.low_bits[1], first, second), 2));
}

// Codes of a step, of two tokens, to levels.
template <int BITS, Reading READING, bool ONE_WINDOW>
inline Bytes levels_of(const Step& step, const uint8_t* first, const uint8_t* second) {
  if constexpr (BITS == 8) return flip_sign(load_two(first + step.low, second + step.low));
  Bytes codes = low_codes<low_width(BITS), READING>(step, first, second);
  if constexpr (has_high_plane(BITS)) {
    Bytes high = set<ONE_WINDOW>(step.high, first, second);
    if constexpr (BITS == 5) return pick(high, look_up(step.table[1], codes), look_up(step.table[0], codes));
    codes = either(codes, only(high, 4));
  }
  return look_up(step.table[0], codes);
}

// The step is a copy: what is written could else be a part of it, for all a compiler knows.
template <int BITS, Reading READING, bool ONE_WINDOW, bool PAIRED>
void run(const Step step, int padded, const uint8_t* const* slots, int count, int8_t* out) {
  for (int token = 0; token < count; token += 2) {
    Bytes levels = levels_of<BITS, READING, ONE_WINDOW>(step, slots[token], slots[token + 1]);
    int8_t* row = out + int64_t(token) * padded;
    if constexpr (PAIRED)
      store_paired(row + 2 * step.dst, levels);
    else
      store_two(row + step.dst, row + padded + step.dst, levels);
  }
}

using Run = void (*)(const Step, int, const uint8_t* const*, int, int8_t*);

template <int BITS, Reading READING, bool PAIRED> Run with_windows(const Step& step) {
  return step.high.one_window ? run<BITS, READING, true, PAIRED> : run<BITS, READING, false, PAIRED>;
}

template <bool PAIRED> Run run_of(const Step& step) {
  constexpr Reading shifted = Reading::shifted, picked = Reading::picked;
  bool by_bit = step.reading == picked;
  switch (step.bits) {
    case 8: return run<8, shifted, true, PAIRED>;
    case 5: return with_windows<5, shifted, PAIRED>(step);
    case 4: return run<4, shifted, true, PAIRED>;
    case 3: return by_bit ? run<3, picked, true, PAIRED> : with_windows<3, shifted, PAIRED>(step);
    default: return by_bit ? run<2, picked, true, PAIRED> : run<2, shifted, true, PAIRED>;
  }
}

template <bool PAIRED> void decode(const Side& side, const uint8_t* const* slots, int count, int8_t* out) {
  for (const Step& step : side.steps) run_of<PAIRED>(step)(step, side.padded, slots, count, out);
}

} // namespace

void decode_plain(const Side& side, const uint8_t* const* slots, int count, int8_t* out) {
  decode<false>(side, slots, count, out);
}

void decode_paired(const Side& side, const uint8_t* const* slots, int count, int8_t* out) {
  decode<true>(side, slots, count, out);
}

} // namespace palu
