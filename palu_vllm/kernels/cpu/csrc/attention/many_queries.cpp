#include "attention/many_queries.hpp"

#include <cmath>

#include "attention/rebuild.hpp"
#include "attention/softmax.hpp"

namespace palu {
namespace {

constexpr int64_t SEGMENT = 32; // tiles of context that are rebuilt before they are attended to
constexpr int64_t ROWS_TOGETHER = 96; // query rows of a KV head that go through the tiles together

// The tiles of a segment, rebuilt, by group.
struct Segment {
  std::vector<Tile> tiles; // [groups, count]
  std::vector<float> numbers;
  int64_t count;
  Whole whole(const Layer& layer, int64_t group, int64_t number) {
    int64_t keys = layer.group_size() * layer.key_dim * TILE, values = layer.group_size() * layer.padded_dim() * TILE;
    float* start = numbers.data() + (group * count + number) * (keys + values);
    return {start, start + keys};
  }
};

// Rows of a KV head, those of one query after those of the one before, and their unfinished softmax.
struct Run {
  int64_t head, first, queries; // first: query of the request
  float* query;                 // [rows, key_dim], scaled
  float *sums, *peak, *total;   // [rows, padded_dim], [rows], [rows]
};

struct Buffers {
  std::vector<float> query, sums, peak, total;
};

// A query times the scale; zeros and false where it is not finite.
bool scaled(const Layer& layer, const float* query, float* out) {
  float sum = 0.f;
  for (int64_t i = 0; i < layer.key_dim; i++) sum += 0.f * query[i];
  for (int64_t i = 0; i < layer.key_dim; i++) out[i] = sum == 0.f ? layer.scale * query[i] : 0.f;
  return sum == 0.f;
}

std::vector<Run> runs_of(const Layer& layer, const Request& request, const float* query, Buffers& into) {
  int64_t repeats = layer.kv_queries(), rows = request.queries * layer.heads, dim = layer.key_dim;
  scratch(into.query, rows * dim), scratch(into.peak, rows), scratch(into.total, rows);
  scratch(into.sums, rows * layer.padded_dim());
  std::fill_n(into.peak.data(), rows, NONE);
  std::fill_n(into.total.data(), rows, 0.f);
  std::fill_n(into.sums.data(), rows * layer.padded_dim(), 0.f);
  int64_t together = std::max<int64_t>(1, ROWS_TOGETHER / repeats), row = 0;
  std::vector<Run> runs;
  // the last queries, which see most, first: threads end at about the same time
  for (int64_t end = request.queries; end > 0; end -= together)
    for (int64_t head = 0; head < layer.kv_heads; head++) {
      int64_t first = std::max<int64_t>(end - together, 0), count = (end - first) * repeats;
      runs.push_back({head, first, end - first, into.query.data() + row * dim,
                      into.sums.data() + row * layer.padded_dim(), into.peak.data() + row, into.total.data() + row});
      row += count;
      for (int64_t i = 0; i < count; i++)
        if (!scaled(layer, query + ((first + i / repeats) * layer.heads + head * repeats + i % repeats) * dim,
                    runs.back().query + i * dim))
          runs.back().total[i] = NAN;
    }
  return runs;
}

// Adds a tile to a run whose first query is at `position`.
void add_tile(const Layer& layer, const Run& run, int64_t position, const Tile& tile, const float* keys,
              const float* values) {
  static thread_local std::vector<float> scores, keep;
  int64_t repeats = layer.kv_queries(), rows = run.queries * repeats, padded = layer.padded_dim();
  scratch(scores, rows * TILE), scratch(keep, rows);
  product(rows, TILE, layer.key_dim, run.query, layer.key_dim, keys, TILE, scores.data(), TILE);
  for (int64_t row = 0; row < rows; row++) {
    float* of_row = scores.data() + row * TILE;
    if (layer.soft_cap > 0.f)
      for (int t = 0; t < TILE; t += WIDE) capped(layer, Vec::loadu(of_row + t)).store(of_row + t);
    hide(layer, tile, position + row / repeats, of_row);
    float peak = std::max(run.peak[row], largest_of(of_row));
    keep[row] = kept(run.peak[row], peak);
    run.peak[row] = peak;
    run.total[row] *= keep[row];
    if (peak == NONE)
      std::fill_n(of_row, TILE, 0.f);
    else
      add_probabilities(tile, peak, of_row, run.total[row], nullptr);
  }
  product(rows, padded, TILE, scores.data(), TILE, values, padded, run.sums, padded, keep.data());
}

void attend_run(const Layer& layer, const Request& request, const Run& run, Segment& segment) {
  int64_t position = request.length - request.queries + run.first;
  int64_t group = run.head / layer.group_size(), member = run.head % layer.group_size();
  for (int64_t i = 0; i < segment.count; i++) {
    const Tile& tile = segment.tiles[group * segment.count + i];
    if (tile.base + tile.begin > position + run.queries - 1) return;
    if (layer.window && tile.base + tile.end <= position - layer.window + 1) continue;
    Whole whole = segment.whole(layer, group, i);
    add_tile(layer, run, position, tile, whole.keys + member * layer.key_dim * TILE,
             whole.values + member * layer.padded_dim() * TILE);
  }
}

void finish(const Layer& layer, const Run& run, float* out) {
  int64_t repeats = layer.kv_queries();
  const float* sinks = layer.sinks.defined() ? layer.sinks.const_data_ptr<float>() : nullptr;
  for (int64_t row = 0; row < run.queries * repeats; row++) {
    int64_t head = run.head * repeats + row % repeats;
    float sink = sinks ? std::exp(sinks[head] - run.peak[row]) : 0.f;
    float share = 1.f / (run.total[row] + sink);
    float* to = out + ((run.first + row / repeats) * layer.heads + head) * layer.value_dim;
    for (int64_t i = 0; i < layer.value_dim; i++) to[i] = run.sums[row * layer.padded_dim() + i] * share;
  }
}

} // namespace

void attend_many(const Layer& layer, const Cache& cache, const float* query, const float* features,
                 const Request& request, float* out) {
  static thread_local Buffers buffers;
  static thread_local Segment segments;
  Segment& segment = segments; // that of the calling thread, for the others too
  std::vector<Run> runs = runs_of(layer, request, query, buffers);
  int64_t begin = layer.window ? std::max<int64_t>(request.length - request.queries - layer.window + 1, 0) : 0;
  int64_t tiles = (request.length - 1) / TILE + 1;
  for (int64_t first = begin / TILE; first < tiles; first += SEGMENT) {
    segment.count = std::min(SEGMENT, tiles - first);
    scratch(segment.tiles, layer.groups * segment.count);
    scratch(segment.numbers, layer.kv_heads * segment.count * TILE * (layer.key_dim + layer.padded_dim()));
    auto rebuild_tile = [&](int64_t i) {
      static thread_local std::vector<uint8_t> last;
      int64_t group = i / segment.count, number = i % segment.count;
      locate(layer, cache, request.table, group, begin, request.length, (first + number) * TILE, last, segment.tiles[i]);
      rebuild(layer, segment.tiles[i], group, features, segment.whole(layer, group, number));
    };
    bool is_last = first + SEGMENT >= tiles;
    auto attend = [&](int64_t i) {
      attend_run(layer, request, runs[i], segment);
      if (is_last) finish(layer, runs[i], out);
    };
    int64_t numbers = layer.heads * (layer.key_dim + layer.value_dim);
    in_stages({{layer.groups * segment.count, rebuild_tile}, {static_cast<int64_t>(runs.size()), attend}},
              request.queries * segment.count * TILE * numbers);
  }
}

} // namespace palu
