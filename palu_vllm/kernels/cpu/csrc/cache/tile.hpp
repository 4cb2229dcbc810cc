// A tile of tokens: where their slots are, and their scales.
#pragma once
#include "codes/decode.hpp"
#include "cache/layer.hpp"

namespace palu {

// Tokens base .. base + TILE - 1 of a request, of which begin .. end - 1 (from base) are wanted.
struct Tile {
  int64_t base;
  int begin, end;
  const uint8_t* slots[TILE];         // even and odd neighbours of wanted tokens included
  float scale_k[TILE], scale_v[TILE]; // sizes, 0 where not finite or not wanted
  float first_k[TILE], first_v[TILE]; // 1 where the centre is that of the first token
  int32_t broken_k[TILE], broken_v[TILE]; // 1 where not finite
  int any_first, any_broken;
  int even() const { return begin & ~1; }
  int count() const { return ((end + 1) & ~1) - even(); }
};

// The tile from `base` of positions `begin .. end - 1`. `last` keeps a copy of the slot at the end of the cache, for
// steps that read past it.
void locate(const Layer& layer, const Cache& cache, const int32_t* table, int64_t group, int64_t begin, int64_t end,
            int64_t base, std::vector<uint8_t>& last, Tile& tile);

// What a row of scores [TILE] may see of a tile: NONE elsewhere.
void hide(const Layer& layer, const Tile& tile, int64_t position, float* scores);

} // namespace palu
