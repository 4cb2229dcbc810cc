// How the numbers of K or V lie in a slot, as a list of steps that each decode 16 of them.
#pragma once
#include <cstdint>
#include <vector>

namespace palu {

constexpr int LANES = 16;    // numbers of a step
constexpr int OVERREAD = 16; // bytes that a step may read past a slot

// Numbers dst .. dst + 15 of a token; those past the end of their plane's part are garbage that later steps overwrite.
struct Step {
  int bits;
  int dst;                       // first number
  int low;                       // first byte of the plane (its low plane for 3 bits), from the start of the slot
  int shift;                     // bits to shift that plane down by
  int high[2];                   // 3 bits: where two windows of the high plane begin
  alignas(16) uint8_t take[2][16]; // 3 bits: which byte of a window a number's high bit is in; 0x80 for none
  alignas(16) uint8_t bit[16];     // 3 bits: which bit of it
  alignas(16) int8_t table[16];    // the level of every code; unused for 8 bits
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

// `sizes_and_bits`: of every tier one after the other. `levels`: those of codes of 2, 3 and 4 bits, one after the other.
Side make_side(const std::vector<int64_t>& sizes_and_bits, const std::vector<int64_t>& levels, int start);

// Where the levels of codes of `bits` begin among `levels`.
inline int first_level(int bits) { return bits == 2 ? 0 : bits == 3 ? 4 : 12; }

} // namespace palu
