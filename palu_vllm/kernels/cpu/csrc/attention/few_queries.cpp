#include "attention/few_queries.hpp"

#include <cmath>

#include "attention/coded.hpp"
#include "codes/matrix.hpp"

namespace palu {
namespace {

constexpr int64_t TOGETHER = 4;    // queries of a request whose rows share one decoding of a tile
constexpr int64_t TURNED_TOGETHER = 24; // rows of a KV head that share one pass over its matrices
constexpr int64_t SUM_LIMIT = INT32_MAX;
constexpr int64_t LARGEST_LEVEL = 127;

// All rows of a call: those of a group together, of its tokens one after the other.
struct Prepared {
  std::vector<int16_t> query;
  std::vector<float> unit, folded, sink;
  std::vector<uint8_t> broken; // the query is not finite
};

// Queries of one request and group that share tiles, and their pieces' numbers.
struct Unit {
  Request request;
  int64_t group, first_row, begin, end, first_piece, pieces; // first_row: of Prepared
  int64_t position() const { return request.length - request.queries; }
};

// The largest int16 whose products with levels cannot overflow an int32 sum.
int64_t largest_step(int rank) { return std::min<int64_t>(INT16_MAX, SUM_LIMIT / (LARGEST_LEVEL * rank)); }

void quantize(const Layer& layer, const float* mapped, int64_t row, Prepared& into) {
  int rank = layer.key.rank;
  float most = 0.f;
  for (int i = 0; i < rank; i++) most = std::max(most, std::abs(mapped[i]));
  bool broken = false;
  for (int64_t i = 0; i < rank + 1 + layer.features; i++) broken |= !std::isfinite(mapped[i]);
  into.broken[row] = broken;
  float largest = static_cast<float>(largest_step(rank));
  float steps = most > 0.f && !broken ? largest / most : 0.f;
  int16_t* query = into.query.data() + row * layer.key.padded;
  for (int i = 0; i < rank; i++)
    query[i] = broken ? int16_t(0) : static_cast<int16_t>(static_cast<int32_t>(std::nearbyint(mapped[i] * steps)));
  std::fill(query + rank, query + layer.key.padded, int16_t(0));
  into.unit[row] = broken ? 0.f : most / largest;
  into.sink[row] = broken ? 0.f : mapped[rank];
  for (int64_t i = 0; i < layer.features; i++)
    into.folded[row * layer.features + i] = broken ? 0.f : mapped[rank + 1 + i];
}

void reserve(const Layer& layer, int64_t rows, Prepared& into) {
  scratch(into.query, rows * layer.key.padded);
  scratch(into.unit, rows);
  scratch(into.sink, rows);
  scratch(into.broken, rows);
  scratch(into.folded, rows * layer.features);
}

// Rows of a KV head, those of one query after those of the one before: how many parts they are worked on in.
int64_t parts_of(const Layer& layer, int64_t tokens) {
  return (tokens * layer.kv_queries() + TURNED_TOGETHER - 1) / TURNED_TOGETHER;
}

// Turns a part of a head's queries into the basis of codes; `item` counts heads and their parts.
void prepare(const Layer& layer, const float* query, int64_t tokens, int64_t item, Prepared& into) {
  static thread_local std::vector<float> copies, turned;
  int64_t repeats = layer.kv_queries(), dim = layer.key_dim, width = layer.query_map.size(2);
  int64_t parts = parts_of(layer, tokens), head = item / parts, first = item % parts * TURNED_TOGETHER;
  int64_t count = std::min(TURNED_TOGETHER, tokens * repeats - first);
  float* rows = scratch(copies, TURNED_TOGETHER * dim);
  float* numbers = scratch(turned, TURNED_TOGETHER * width);
  for (int64_t i = 0; i < count; i++) {
    int64_t token = (first + i) / repeats, repeat = (first + i) % repeats;
    std::copy_n(query + (token * layer.heads + head * repeats + repeat) * dim, dim, rows + i * dim);
  }
  const float* map = layer.query_map.const_data_ptr<float>() + head * dim * width;
  product(count, width, dim, rows, dim, map, width, numbers, width);
  int64_t group = head / layer.group_size(), member = head % layer.group_size();
  for (int64_t i = 0; i < count; i++) {
    int64_t token = (first + i) / repeats, repeat = (first + i) % repeats;
    quantize(layer, numbers + i * width, (group * tokens + token) * layer.group_heads() + member * repeats + repeat, into);
  }
}

// The output of a part of a head's queries, of their `means` [rows, rank_v + 2].
void finish(const Layer& layer, const float* means, int64_t tokens, int64_t item, float* out) {
  static thread_local std::vector<float> values;
  int64_t repeats = layer.kv_queries(), inner = layer.value.rank + 2, width = layer.padded_dim();
  int64_t parts = parts_of(layer, tokens), head = item / parts, first = item % parts * TURNED_TOGETHER;
  int64_t count = std::min(TURNED_TOGETHER, tokens * repeats - first);
  float* found = scratch(values, TURNED_TOGETHER * width);
  const float* map = layer.value_map.const_data_ptr<float>() + head * inner * width;
  product(count, width, inner, means + (head * tokens * repeats + first) * inner, inner, map, width, found, width);
  for (int64_t i = 0; i < count; i++) {
    int64_t token = (first + i) / repeats, repeat = (first + i) % repeats;
    std::copy_n(found + i * width, layer.value_dim,
                out + (token * layer.heads + head * repeats + repeat) * layer.value_dim);
  }
}

std::vector<Unit> units_of(const Layer& layer, const std::vector<Request>& requests, int64_t tokens) {
  std::vector<Unit> units;
  int64_t pieces = 0, token = 0;
  for (const Request& request : requests) {
    for (int64_t done = 0; done < request.queries; done += TOGETHER) {
      Request part = request;
      part.queries = std::min(TOGETHER, request.queries - done);
      part.length = request.length - request.queries + done + part.queries;
      part.row = token + done;
      int64_t first = part.length - part.queries - layer.window + 1;
      int64_t begin = layer.window ? std::max<int64_t>(first, 0) : 0;
      int64_t count = (part.length - 1) / CHUNK - begin / CHUNK + 1;
      for (int64_t group = 0; group < layer.groups; group++, pieces += count)
        units.push_back({part, group, (group * tokens + part.row) * layer.group_heads(), begin, part.length, pieces, count});
    }
    token += request.queries;
  }
  return units;
}

// States of all pieces, each with room for TOGETHER queries.
struct States {
  std::vector<float> numbers;
  int64_t rows, padded;
  State at(int64_t piece) {
    float* start = numbers.data() + piece * rows * (padded + 3);
    return {start, start + rows, start + 2 * rows, start + 3 * rows};
  }
};

Piece piece_of(const Layer& layer, const Unit& unit, const Prepared& prepared, int64_t number) {
  int64_t chunk = unit.begin / CHUNK + number, row = unit.first_row;
  Rows rows{static_cast<int>(unit.request.queries * layer.group_heads()),
            prepared.query.data() + row * layer.key.padded,
            prepared.unit.data() + row,
            prepared.folded.data() + row * layer.features,
            prepared.sink.data() + row,
            unit.position(),
            static_cast<int>(layer.group_heads())};
  return {rows, unit.group, std::max(unit.begin, chunk * CHUNK), std::min(unit.end, (chunk + 1) * CHUNK),
          unit.request.table};
}

// Joins a row's states of all pieces: out [rank_v + 2], the mean of levels and the shares of the two centres.
void join(const Layer& layer, States& states, const Unit& unit, int row, float sink, bool broken, float* out) {
  float peak = sink, total, first = 0.f;
  for (int64_t i = 0; i < unit.pieces; i++) peak = std::max(peak, states.at(unit.first_piece + i).peak[row]);
  total = std::exp(sink - peak);
  float of_sink = total;
  std::fill_n(out, layer.value.rank, 0.f);
  for (int64_t i = 0; i < unit.pieces; i++) {
    State state = states.at(unit.first_piece + i);
    float keep = std::exp(state.peak[row] - peak);
    total += keep * state.total[row];
    first += keep * state.first[row];
    const float* sums = state.sums + int64_t(row) * layer.value.padded;
    for (int j = 0; j < layer.value.rank; j++) out[j] += keep * sums[j];
  }
  float share = broken ? NAN : 1.f / total;
  for (int j = 0; j < layer.value.rank; j++) out[j] *= share;
  out[layer.value.rank] = (total - of_sink - first) * share;
  out[layer.value.rank + 1] = first * share;
}

void join_unit(const Layer& layer, const Prepared& prepared, States& states, const Unit& unit, int64_t tokens,
               float* means) {
  int64_t repeats = layer.kv_queries(), heads = layer.group_heads();
  const float* sinks = layer.sinks.defined() ? layer.sinks.const_data_ptr<float>() : nullptr;
  for (int row = 0; row < unit.request.queries * heads; row++) {
    int64_t token = unit.request.row + row / heads, head = unit.group * heads + row % heads;
    float* out = means + ((head / repeats * tokens + token) * repeats + head % repeats) * (layer.value.rank + 2);
    join(layer, states, unit, row, sinks ? sinks[head] : NONE, prepared.broken[unit.first_row + row], out);
  }
}

// Multiplications of a call: queries times numbers of all slots that they see, and times the matrices around.
int64_t work_of(const Layer& layer, const std::vector<Unit>& units, int64_t tokens) {
  int64_t numbers = layer.key.rank + layer.value.rank, seen = 0;
  for (const Unit& unit : units) seen += (unit.end - unit.begin) * unit.request.queries * layer.group_heads();
  int64_t around = layer.key_dim * layer.query_map.size(2) + (layer.value.rank + 2) * layer.padded_dim();
  return seen * numbers + tokens * layer.heads * around;
}

} // namespace

void attend_few(const Layer& layer, const Cache& cache, const float* query, int64_t tokens, const float* features,
                const std::vector<Request>& requests, float* out) {
  static thread_local Prepared prepared;
  static thread_local States states;
  static thread_local std::vector<float> mean_levels;
  Prepared& rows = prepared; // those of the calling thread, for the others too
  States& all = states;
  reserve(layer, tokens * layer.heads, rows);
  float* means = scratch(mean_levels, tokens * layer.heads * (layer.value.rank + 2));
  std::vector<Unit> units = units_of(layer, requests, tokens);
  std::vector<std::pair<const Unit*, int64_t>> pieces;
  int64_t longest = 0;
  for (const Unit& unit : units) {
    for (int64_t i = 0; i < unit.pieces; i++) pieces.emplace_back(&unit, i);
    longest = std::max(longest, unit.request.queries);
  }
  all.rows = longest * layer.group_heads();
  all.padded = layer.value.padded;
  scratch(all.numbers, static_cast<int64_t>(pieces.size()) * all.rows * (all.padded + 3));
  auto attend = [&](int64_t i) {
    attend_piece(layer, cache, features, piece_of(layer, *pieces[i].first, rows, pieces[i].second), all.at(i));
  };
  int64_t parts = layer.kv_heads * parts_of(layer, tokens);
  in_stages({{parts, [&](int64_t i) { prepare(layer, query, tokens, i, rows); }},
             {static_cast<int64_t>(pieces.size()), attend},
             {static_cast<int64_t>(units.size()), [&](int64_t i) { join_unit(layer, rows, all, units[i], tokens, means); }},
             {parts, [&](int64_t i) { finish(layer, means, tokens, i, out); }}},
            work_of(layer, units, tokens));
}

} // namespace palu
