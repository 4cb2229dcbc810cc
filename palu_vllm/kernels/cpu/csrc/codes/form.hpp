// How the numbers of K or V lie in a slot, as a list of steps that each decode 16 of them.
#pragma once
#include <cstdint>
#include <vector>

namespace palu {

constexpr int LANES = 16;    // numbers of a step
constexpr int OVERREAD = 16; // bytes that a step may read past a slot

// Where one bit of 16 numbers is, in two windows of 16 bytes.
struct Bits {
  int window[2];                   // first byte of each, from the start of the slot
  bool one_window;
  alignas(16) uint8_t take[2][16]; // which byte of a window a number's bit is in; 0x80 for none
  alignas(16) uint8_t bit[16];     // which bit of it
};

// How a step gets its 16 codes. A plane is shifted where 16 neighbours lie in neighbouring bytes; the bits of a plane of
// less than 16 bytes are picked one by one.
enum class Reading { shifted, picked };

// Numbers dst .. dst + 15 of a token; those past the end of their plane's part are garbage that later steps overwrite.
struct Step {
  int bits;
  Reading reading;
  int dst;                       // first number
  int low;                       // first byte of the plane (the low one of 3 and 5 bits), from the start of the slot
  int shift;                     // bits to shift that plane down by
  Bits low_bits[2];              // where the two bits of a picked plane are
  Bits high;                     // 3 and 5 bits: where those of the high plane are
  alignas(16) int8_t table[2][16]; // the level of every code, those of 5 bits with a high bit apart; unused for 8 bits
};

struct Tier {
  int size, bits;
  int number, byte; // first number of the side; first byte of the slot
};

struct Side {
  std::vector<Tier> tiers;
  std::vector<Step> steps;
  int rank = 0;
  int width = 0;  // the rank in whole steps
  int padded = 0; // numbers of a row of a tile: what steps write, and an odd number of steps, so that rows share no cache set
  int start = 0;  // first byte of the slot
  int bytes = 0;
  bool quantized = true;
};

// `sizes_and_bits`: of every tier one after the other. `levels`: those of codes of 2 to 5 bits, one after the other.
Side make_side(const std::vector<int64_t>& sizes_and_bits, const std::vector<int64_t>& levels, int start);

// Where the levels of codes of `bits` begin among `levels`.
inline int first_level(int bits) { return (1 << bits) - 4; }

// Whether the highest bit of codes lies in a plane of its own, and the width of the other plane.
constexpr bool has_high_plane(int bits) { return bits == 3 || bits == 5; }
constexpr int low_width(int bits) { return bits - has_high_plane(bits); }

} // namespace palu
