// The class palu_cpu::Codec that Python sees.
#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/tensor.h>
#include <torch/custom_class.h>
#include <torch/library.h>

#include "attention/few_queries.hpp"
#include "attention/many_queries.hpp"
#include "cache/store.hpp"

namespace palu {

Cache::Cache(const at::Tensor& cache)
    : start(cache.const_data_ptr<uint8_t>()),
      block_size(cache.size(2)),
      block(cache.stride(0)),
      group(cache.stride(1)),
      slot(cache.stride(2)) {
  const at::Storage& storage = cache.storage();
  end = static_cast<const uint8_t*>(storage.data()) + storage.nbytes();
}

namespace {

using Numbers = std::vector<int64_t>;
using Tensors = c10::Dict<std::string, at::Tensor>;

constexpr int64_t MOST_FEW = 128; // queries of a request; more are better off with whole keys

template <class T> std::vector<T> numbers_of(const at::Tensor& tensor) {
  return {tensor.const_data_ptr<T>(), tensor.const_data_ptr<T>() + tensor.numel()};
}

at::Tensor rows_of(const std::vector<Request>& requests, int64_t first) {
  std::vector<int64_t> rows;
  for (const Request& request : requests)
    for (int64_t i = 0; i < request.queries; i++) rows.push_back(request.row - first + i);
  return at::tensor(rows, at::kLong);
}

struct Codec : torch::CustomClassHolder {
  Layer layer;
  Store stored;

  // See kernels/cpu/codec_constants.py for what everything is.
  Codec(const Numbers& tiers_k, const Numbers& tiers_v, const Numbers& levels, const std::vector<double>& units,
        const Numbers& shape, const Tensors& tensors, double scale, double soft_cap) {
    layer.key = make_side(tiers_k, levels, SCALES);
    layer.value = make_side(tiers_v, levels, SCALES + layer.key.bytes);
    layer.groups = shape.at(0), layer.kv_heads = shape.at(1), layer.heads = shape.at(2), layer.window = shape.at(3);
    layer.value_dim = shape.at(4), layer.features = shape.at(5);
    layer.query_map = tensors.at("query_map").contiguous();
    layer.value_map = tensors.at("value_map").contiguous();
    layer.key_dim = layer.query_map.size(1);
    if (tensors.contains("sinks")) layer.sinks = tensors.at("sinks").contiguous();
    layer.soft_cap = static_cast<float>(soft_cap);
    stored.key = {make_encoder(layer.key, levels, units), tensors.at("encoder_k"), tensors.at("sink_k")};
    stored.value = {make_encoder(layer.value, levels, units), tensors.at("encoder_v"), tensors.at("sink_v")};
    stored.value_mean = tensors.at("value_mean");
    layer.decoder_k = tensors.at("decoder_k");
    layer.centre_cos = numbers_of<float>(tensors.at("centre_cos"));
    layer.centre_sin = numbers_of<float>(tensors.at("centre_sin"));
    layer.sink_k = tensors.at("first_k"), layer.sink_v = tensors.at("first_v"), layer.mean_v = tensors.at("mean_v");
    layer.frequency_of = numbers_of<int64_t>(tensors.at("frequency_of"));
    layer.scale = static_cast<float>(scale);
  }

  void put(const at::Tensor& key, const at::Tensor& value, const at::Tensor& positions, const at::Tensor& cache,
           const at::Tensor& slots, const at::Tensor& features) const {
    c10::InferenceMode guard;
    int64_t tokens = slots.size(0);
    store(layer, stored, key.narrow(0, 0, tokens), value.narrow(0, 0, tokens), positions.const_data_ptr<int64_t>(),
          slots.const_data_ptr<int64_t>(), tokens, features, cache);
  }

  void attend(const at::Tensor& query, const at::Tensor& cache, const at::Tensor& block_table, const at::Tensor& seq_lens,
              const at::Tensor& starts, const at::Tensor& features, const at::Tensor& out) const {
    c10::InferenceMode guard;
    const int32_t* start = starts.const_data_ptr<int32_t>();
    const int32_t* length = seq_lens.const_data_ptr<int32_t>();
    std::vector<Request> few, many;
    for (int64_t i = 0; i < seq_lens.size(0); i++)
      if (int64_t queries = start[i + 1] - start[i]; queries > 0)
        (queries > MOST_FEW || !layer.key.quantized || !layer.value.quantized ? many : few)
            .push_back({block_table.const_data_ptr<int32_t>() + i * block_table.stride(0), start[i], queries, length[i]});
    int64_t first = start[0], tokens = start[seq_lens.size(0)] - first;
    if (!tokens) return;
    at::Tensor rows = query.narrow(0, first, tokens).to(at::kFloat).contiguous();
    const float* table = features.const_data_ptr<float>();
    at::Tensor to = out.narrow(0, first, tokens);
    bool direct = to.is_contiguous() && to.scalar_type() == at::kFloat;
    at::Tensor found = direct ? to : at::empty({tokens, layer.heads, layer.value_dim}, rows.options());
    for (const Request& request : many) {
      int64_t row = (request.row - first) * layer.heads;
      attend_many(layer, Cache(cache), rows.const_data_ptr<float>() + row * layer.key_dim, table, request,
                  found.mutable_data_ptr<float>() + row * layer.value_dim);
    }
    attend_rest(Cache(cache), rows, table, few, first, found);
    if (!direct) to.copy_(found);
  }

  // The requests with few queries, whose rows begin at `first`; where there are others too, rows are copied together.
  void attend_rest(const Cache& cache, const at::Tensor& rows, const float* table, const std::vector<Request>& few,
                   int64_t first, at::Tensor& found) const {
    if (few.empty()) return;
    at::Tensor index = rows_of(few, first);
    int64_t tokens = index.size(0);
    if (tokens == rows.size(0)) {
      attend_few(layer, cache, rows.const_data_ptr<float>(), tokens, table, few, found.mutable_data_ptr<float>());
      return;
    }
    at::Tensor some = at::index_select(rows, 0, index), out = at::empty({tokens, layer.heads, layer.value_dim}, rows.options());
    attend_few(layer, cache, some.const_data_ptr<float>(), tokens, table, few, out.mutable_data_ptr<float>());
    found.index_copy_(0, index, out);
  }
};

} // namespace

TORCH_LIBRARY(palu_cpu, library) {
  library.class_<Codec>("Codec")
      .def(torch::init<const Numbers&, const Numbers&, const Numbers&, const std::vector<double>&, const Numbers&,
                       const Tensors&, double, double>())
      .def("put", &Codec::put)
      .def("attend", &Codec::attend);
}

} // namespace palu
