#include "coded.hpp"

#include <ATen/cpu/vec/vec.h>
#include <c10/util/Half.h>

#include <cmath>

#include "products.hpp"

namespace palu {
namespace {

using Vec = at::vec::Vectorized<float>;
constexpr int WIDE = Vec::size();
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

// A tile of tokens base .. base + TILE - 1, of which begin .. end - 1 (from base) are wanted.
struct Tile {
  int64_t base;
  int begin, end;
  const uint8_t* slots[TILE]; // even and odd neighbours of wanted tokens included
  float scale_k[TILE], scale_v[TILE]; // sizes, 0 where not finite or not wanted
  float first_k[TILE], first_v[TILE]; // 1 where the centre is that of the first token
  bool broken_k[TILE], broken_v[TILE];
  bool any_first, any_broken;
  int even() const { return begin & ~1; }
  int count() const { return (end + 1 & ~1) - even(); }
};

float half_at(const uint8_t* bytes) {
  uint16_t bits;
  std::memcpy(&bits, bytes, 2);
  return c10::detail::fp16_ieee_to_fp32_value(bits);
}

void read_scale(const uint8_t* bytes, float& size, float& first, bool& broken) {
  float scale = half_at(bytes);
  broken = !std::isfinite(scale);
  first = std::signbit(scale) ? 1.f : 0.f;
  size = broken ? 0.f : std::abs(scale);
}

void locate(const Layer& layer, const Cache& cache, const Piece& piece, int64_t base, Workspace& space, Tile& tile) {
  tile.base = base;
  tile.begin = static_cast<int>(std::max<int64_t>(piece.begin - base, 0));
  tile.end = static_cast<int>(std::min<int64_t>(piece.end - base, TILE));
  tile.any_first = tile.any_broken = false;
  int64_t bytes = layer.value.start + layer.value.bytes;
  for (int t = 0; t < TILE; t++) {
    tile.scale_k[t] = tile.scale_v[t] = tile.first_k[t] = tile.first_v[t] = 0.f;
    tile.broken_k[t] = tile.broken_v[t] = false;
    if (t < tile.begin || t >= tile.end) continue;
    const uint8_t* slot = cache.at(piece.table, piece.group, base + t);
    if (slot + bytes + OVERREAD > cache.end) {
      uint8_t* copy = scratch(space.last, bytes + OVERREAD);
      std::memcpy(copy, slot, bytes);
      slot = copy;
    }
    tile.slots[t] = slot;
    read_scale(slot, tile.scale_k[t], tile.first_k[t], tile.broken_k[t]);
    read_scale(slot + 2, tile.scale_v[t], tile.first_v[t], tile.broken_v[t]);
    tile.any_first |= tile.first_k[t] + tile.first_v[t] > 0.f;
    tile.any_broken |= tile.broken_k[t] | tile.broken_v[t];
  }
  if (tile.begin & 1) tile.slots[tile.begin - 1] = tile.slots[tile.begin];
  if (tile.end & 1) tile.slots[tile.end] = tile.slots[tile.end - 1];
}

float dot(const float* x, const float* y, int64_t count) {
  Vec sum(0.f);
  int64_t i = 0;
  for (; i + WIDE <= count; i += WIDE) sum = at::vec::fmadd(Vec::loadu(x + i), Vec::loadu(y + i), sum);
  float total = at::vec::vec_reduce_all<float>([](Vec& a, Vec& b) { return a + b; }, sum);
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
    if (layer.soft_cap > 0.f) score = (score / Vec(layer.soft_cap)).tanh() * Vec(layer.soft_cap);
    score.store(scores + t);
  }
  int64_t position = piece.rows.position + row / piece.rows.heads - tile.base;
  int64_t begin = layer.window ? std::max<int64_t>(tile.begin, position - layer.window + 1) : tile.begin;
  int64_t end = std::min<int64_t>(tile.end, position + 1);
  for (int64_t t = 0; t < std::min<int64_t>(begin, TILE); t++) scores[t] = NONE;
  for (int64_t t = std::max<int64_t>(end, 0); t < TILE; t++) scores[t] = NONE;
  Vec peak(NONE);
  for (int t = 0; t < TILE; t += WIDE) peak = at::vec::clamp_min(Vec::loadu(scores + t), peak);
  return at::vec::vec_reduce_all<float>([](Vec& a, Vec& b) { return at::vec::maximum(a, b); }, peak);
}

// NaN in the row's total where a token that it sees is not finite.
void spread_nan(const Tile& tile, const float* scores, const float* probabilities, float& total) {
  for (int t = tile.begin; t < tile.end; t++)
    if ((tile.broken_k[t] && scores[t] > NONE) || (tile.broken_v[t] && probabilities[t] > 0.f)) total = NAN;
}

// Scores [TILE] of a row to weights in int16; returns what a step of them is worth.
float weights_of(const Tile& tile, float peak, float* scores, float& total, float& first, int16_t* weights) {
  float probabilities[TILE], sizes[TILE];
  Vec sum(0.f), largest(0.f), of_first(0.f);
  for (int t = 0; t < TILE; t += WIDE) {
    Vec probability = (Vec::loadu(scores + t) - Vec(peak)).exp_u20();
    Vec size = probability * Vec::loadu(tile.scale_v + t);
    sum = sum + probability;
    largest = at::vec::clamp_min(size, largest);
    if (tile.any_first) of_first = at::vec::fmadd(probability, Vec::loadu(tile.first_v + t), of_first);
    probability.store(probabilities + t);
    size.store(sizes + t);
  }
  auto add = [](Vec& a, Vec& b) { return a + b; };
  total += at::vec::vec_reduce_all<float>(add, sum);
  if (tile.any_first) first += at::vec::vec_reduce_all<float>(add, of_first);
  if (tile.any_broken) spread_nan(tile, scores, probabilities, total);
  float most = at::vec::vec_reduce_all<float>([](Vec& a, Vec& b) { return at::vec::maximum(a, b); }, largest);
  float steps = most > 0.f ? 32767.f / most : 0.f;
  for (int t = 0; t < TILE; t++) weights[t] = static_cast<int16_t>(static_cast<int32_t>(sizes[t] * steps + 0.5f));
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
    space.keep[row] = state.peak[row] == peak ? 1.f : std::exp(state.peak[row] - peak);
    space.unit[row] = 0.f;
    if (peak == NONE) {
      std::fill_n(weights, TILE, int16_t(0));
      continue;
    }
    state.total[row] *= space.keep[row];
    state.first[row] *= space.keep[row];
    state.peak[row] = peak;
    space.unit[row] = weights_of(tile, peak, scores, state.total[row], state.first[row], weights);
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

void attend_piece(const Layer& layer, const Cache& cache, const float* features, const Piece& piece, const State& state) {
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
  for (int64_t base = piece.begin / TILE * TILE; base < piece.end; base += TILE) {
    locate(layer, cache, piece, base, space, tile);
    int even = tile.even(), count = tile.count();
    decode_plain(layer.key, tile.slots + even, count, levels);
    dot_products(layer.key, levels, piece.rows.query, rows, count, space.dots.data() + even);
    softmax_of(layer, tile, piece, usual, space, state);
    decode_paired(layer.value, tile.slots + even, count, levels);
    weighted_sums(layer.value, levels, space.weights.data() + even, rows, count, space.keep.data(), space.unit.data(),
                  state.sums);
  }
}

} // namespace palu
