// Tiles of context as whole keys and values in float32, for many queries, which share the work of rebuilding them.
#pragma once
#include "codes/matrix.hpp"
#include "cache/tile.hpp"

namespace palu {

// Keys and values of a tile and group, zeros where a token is not finite or not wanted.
struct Whole {
  float* keys;   // [group_size, key_dim, TILE]
  float* values; // [group_size, TILE, padded_dim]
};

void rebuild(const Layer& layer, const Tile& tile, int64_t group, const float* features, const Whole& whole);

} // namespace palu
