// What the parts of the library share: a layer, a call of its attention, and states of an unfinished softmax.
#pragma once
#include <ATen/core/Tensor.h>

#include <atomic>
#include <functional>
#include <limits>
#include <thread>
#include <vector>

#include <ATen/Parallel.h>

#include "codes/form.hpp"

namespace palu {

constexpr int BLOCK = 16;        // positions with one usual centre, format/codec/positions.py
constexpr int SCALES = 4;        // bytes of a slot before its tiers: two float16
constexpr int64_t CHUNK = 512;   // tokens of context that are one piece of work
constexpr float NONE = -std::numeric_limits<float>::infinity();

struct Layer {
  Side key, value;
  int64_t groups, kv_heads, heads, key_dim, value_dim, features; // features: numbers of a block's row of the table
  // float32, see `codec_constants` in Python; columns in whole COLUMNS, zeros past the last
  at::Tensor query_map; // [kv_heads, key_dim, rank_k + 1 + features]
  at::Tensor value_map; // [kv_heads, rank_v + 2, value_dim]
  at::Tensor sinks;     // float32 [heads], or undefined
  // for many queries, see `rebuild.hpp`
  at::Tensor decoder_k; // float32 [kv_heads, key_dim, rank_k]
  at::Tensor sink_k;                         // float32 [kv_heads, key_dim]
  at::Tensor mean_v, sink_v;                 // float32 [kv_heads, value_dim]
  std::vector<float> centre_cos, centre_sin; // [kv_heads * key_dim]
  std::vector<int64_t> frequency_of;         // [kv_heads * key_dim]
  float scale;
  int64_t window;       // tokens that a query sees; 0: all
  float soft_cap;       // 0: none
  int64_t group_heads() const { return heads / groups; }
  int64_t kv_queries() const { return heads / kv_heads; }
  int64_t group_size() const { return kv_heads / groups; }
  // Of number `i` of all heads' keys, in the block of positions with these features.
  float usual_centre(int64_t i, const float* block) const {
    int64_t frequency = frequency_of[i];
    return centre_cos[i] * block[frequency] + centre_sin[i] * block[features / 2 + frequency];
  }
  int64_t padded_dim() const { return value_map.size(2); }
};

// The cache, uint8 [blocks, groups, block_size, slot bytes] with any strides but the last.
struct Cache {
  const uint8_t* start;
  const uint8_t* end; // of its memory
  int64_t block_size, block, group, slot; // strides in bytes
  explicit Cache(const at::Tensor& cache);
  // Calls f(position, slot) for positions begin .. end - 1 of a request.
  template <class F> void each_slot(const int32_t* table, int64_t group_index, int64_t begin, int64_t end, F f) const {
    for (int64_t position = begin; position < end;) {
      int64_t number = position / block_size, stop = std::min(end, (number + 1) * block_size);
      const uint8_t* at = start + table[number] * block + group_index * group + (position - number * block_size) * slot;
      for (; position < stop; position++, at += slot) f(position, at);
    }
  }
};

// Pieces of work that need those of the stage before: run(item) for every item.
struct Stage {
  int64_t items;
  std::function<void(int64_t)> run;
};

constexpr int TURNS = 20'000; // of waiting for the last items of a stage, some ten microseconds, before giving way

constexpr int64_t ALONE = 1 << 19; // multiplications per thread: fewer are not worth waking another one

// Runs stages one after the other, in one parallel region: on a busy machine every region waits until each thread had
// its turn. Who does which item is left to chance, so items share no sums. `work` are multiplications, roughly.
inline void in_stages(const std::vector<Stage>& stages, int64_t work) {
  std::vector<std::atomic<int64_t>> taken(stages.size()), done(stages.size());
  int64_t threads = std::min<int64_t>(at::get_num_threads(), work / ALONE + 1);
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (size_t s = 0; s < stages.size(); s++) {
      for (int64_t i; (i = taken[s].fetch_add(1)) < stages[s].items; done[s].fetch_add(1)) stages[s].run(i);
      for (int turn = 0; done[s].load() < stages[s].items; turn++)
        if (turn > TURNS) std::this_thread::yield(); // which on a busy machine may cost a time slice
    }
  });
}

// Memory that stays from call to call: fresh pages cost more than what is written to them.
template <class T> T* scratch(std::vector<T>& buffer, int64_t count) {
  if (static_cast<int64_t>(buffer.size()) < count) buffer.resize(count);
  return buffer.data();
}

} // namespace palu
