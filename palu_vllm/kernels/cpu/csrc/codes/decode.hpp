// Codes of a tile of tokens to int8 levels.
#pragma once
#include "codes/form.hpp"

namespace palu {

constexpr int TILE = 64; // tokens

// Levels of `count` tokens (even) whose slots begin at `slots`, from which OVERREAD bytes more than a slot can be read.
// Plain: token t's are out[t * padded ...]. Paired: number i of tokens t and t + 1, t even, are neighbours at
// out[t * padded + 2 * i].
void decode_plain(const Side& side, const uint8_t* const* slots, int count, int8_t* out);
void decode_paired(const Side& side, const uint8_t* const* slots, int count, int8_t* out);

} // namespace palu
