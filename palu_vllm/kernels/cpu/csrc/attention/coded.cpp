#include "attention/coded.hpp"

#include <cmath>

#include "attention/products.hpp"
#include "attention/softmax.hpp"

namespace palu {
namespace {

static_assert(BLOCK % WIDE == 0, "a vector of scores has one usual centre");

// What a thread works in.
struct Workspace {
  std::vector<int8_t> levels;
  std::vector<uint8_t> last; // a copy of the slot at the end of the cache, for steps that read past it
  std::vector<int32_t> dots;
  std::vector<float> scores, usual;
  std::vector<int16_t> weights;
  std::vector<float> keep, unit;
};

float dot(const float* x, const float* y, int64_t count) {
  Vec sum(0.f);
  int64_t i = 0;
  for (; i + WIDE <= count; i += WIDE) sum = at::vec::fmadd(Vec::loadu(x + i), Vec::loadu(y + i), sum);
  float total = sum_of(sum);
  for (; i < count; i++) total += x[i] * y[i];
  return total;
}

// Scores of the usual centres, [rows, blocks].
const float* usual_scores(const Layer& layer, const float* features, const Piece& piece, Workspace& space) {
  int64_t first = piece.begin / BLOCK, blocks = (piece.end - 1) / BLOCK - first + 1;
  float* usual = scratch(space.usual, piece.rows.count * (CHUNK / BLOCK + 1));
  for (int row = 0; row < piece.rows.count; row++)
    for (int64_t block = 0; block < blocks; block++)
      usual[row * (CHUNK / BLOCK + 1) + block] = dot(
          piece.rows.folded + row * layer.features, features + (first + block) * layer.features, layer.features);
  return usual;
}

// dots [TILE] of a row to scores, NONE where the row's query sees nothing; returns the largest.
float scores_of(const Layer& layer, const Tile& tile, const Piece& piece, int row, const float* usual,
                const int32_t* dots, float* scores) {
  Vec unit(piece.rows.unit[row]), sink(piece.rows.sink[row]);
  for (int t = 0; t < TILE; t += WIDE) {
    int64_t block = (tile.base + t) / BLOCK - piece.begin / BLOCK;
    bool known = t + BLOCK > tile.begin && t < tile.end;
    Vec centre(known ? usual[std::max<int64_t>(block, 0)] : 0.f);
    if (tile.any_first) centre = at::vec::fmadd(Vec::loadu(tile.first_k + t), sink - centre, centre);
    Vec product = at::vec::convert<float>(at::vec::Vectorized<int32_t>::loadu(dots + t)) * unit;
    Vec score = at::vec::fmadd(product, Vec::loadu(tile.scale_k + t), centre);
    capped(layer, score).store(scores + t);
  }
  hide(layer, tile, piece.rows.position + row / piece.rows.heads, scores);
  return largest_of(scores);
}

// Probabilities [TILE] of a row to weights in int16; returns what a step of them is worth.
float weights_of(const Tile& tile, float* probabilities, int16_t* weights) {
  Vec largest(0.f);
  for (int t = 0; t < TILE; t += WIDE) {
    Vec weight = Vec::loadu(probabilities + t) * Vec::loadu(tile.scale_v + t);
    largest = at::vec::clamp_min(weight, largest);
    weight.store(probabilities + t);
  }
  float most = largest_of(largest), steps = most > 0.f ? 32767.f / most : 0.f;
  for (int t = 0; t < TILE; t++)
    weights[t] = static_cast<int16_t>(static_cast<int32_t>(probabilities[t] * steps + 0.5f));
  return most / 32767.f;
}

void softmax_of(const Layer& layer, const Tile& tile, const Piece& piece, const float* usual, Workspace& space,
                const State& state) {
  for (int row = 0; row < piece.rows.count; row++) {
    float* scores = space.scores.data();
    int16_t* weights = space.weights.data() + row * TILE;
    float peak = scores_of(layer, tile, piece, row, usual + row * (CHUNK / BLOCK + 1), space.dots.data() + row * TILE,
                           scores);
    peak = std::max(state.peak[row], peak);
    space.keep[row] = kept(state.peak[row], peak);
    space.unit[row] = 0.f;
    if (peak == NONE) {
      std::fill_n(weights, TILE, int16_t(0));
      continue;
    }
    state.total[row] *= space.keep[row];
    state.first[row] *= space.keep[row];
    state.peak[row] = peak;
    add_probabilities(tile, peak, scores, state.total[row], &state.first[row]);
    space.unit[row] = weights_of(tile, scores, weights);
  }
}

void reserve(const Layer& layer, int rows, Workspace& space) {
  scratch(space.levels, int64_t(TILE) * std::max(layer.key.padded, layer.value.padded));
  scratch(space.dots, rows * TILE);
  scratch(space.weights, rows * TILE);
  scratch(space.scores, TILE);
  scratch(space.keep, rows);
  scratch(space.unit, rows);
}

} // namespace

void attend_piece(const Layer& layer, const Cache& cache, const float* features, const Piece& piece,
                  const State& state) {
  static thread_local Workspace space;
  int rows = piece.rows.count;
  reserve(layer, rows, space);
  std::fill_n(state.peak, rows, NONE);
  std::fill_n(state.total, rows, 0.f);
  std::fill_n(state.first, rows, 0.f);
  std::fill_n(state.sums, int64_t(rows) * layer.value.padded, 0.f);
  const float* usual = usual_scores(layer, features, piece, space);
  int8_t* levels = space.levels.data();
  Tile tile;
  const uint8_t* next[TILE];
  for (int64_t base = piece.begin / TILE * TILE; base < piece.end; base += TILE) {
    locate(layer, cache, piece.table, piece.group, piece.begin, piece.end, base, space.last, tile);
    int even = tile.even(), count = tile.count();
    decode_plain(layer.key, tile.slots + even, count, levels);
    int64_t after = base + TILE;
    Ahead ahead{next, static_cast<int>(std::clamp<int64_t>(piece.end - after, 0, TILE)), layer.value.start + layer.value.bytes};
    cache.each_slot(piece.table, piece.group, after, after + ahead.count,
                    [&](int64_t position, const uint8_t* slot) { next[position - after] = slot; });
    if (ahead.count & 1) next[ahead.count] = next[ahead.count - 1]; // they are fetched by twos
    dot_products(layer.key, levels, piece.rows.query, rows, count, ahead, space.dots.data() + even);
    softmax_of(layer, tile, piece, usual, space, state);
    decode_paired(layer.value, tile.slots + even, count, levels);
    weighted_sums(layer.value, levels, space.weights.data() + even, rows, count, space.keep.data(), space.unit.data(),
                  state.sums);
  }
}

} // namespace palu
