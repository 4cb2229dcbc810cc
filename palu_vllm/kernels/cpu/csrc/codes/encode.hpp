// Numbers of one token, group and side to codes and a scale: format/codec/coding.py, bit for bit.
#pragma once
#include "codes/form.hpp"

namespace palu {

// Where a number's code changes, and what the levels of a tier count in.
struct Coder {
  std::vector<float> thresholds; // of a tier's bits, ascending; those of 8 bits are not listed
  std::vector<float> levels;     // of its codes
  float unit;                    // in standard deviations
  double weight;                 // unit^2, as the specification computes it
};

struct Encoder {
  const Side* side;
  std::vector<Coder> coders; // of its tiers
};

// `units`: of 2 to 5 and of 8 bits.
Encoder make_encoder(const Side& side, const std::vector<int64_t>& levels, const std::vector<double>& units);

// Writes side.bytes to `payload`; returns the scale's float16. `y` has side.rank numbers, `codes` room for as many.
uint16_t encode(const Encoder& encoder, const float* y, uint8_t* codes, uint8_t* payload);

} // namespace palu
