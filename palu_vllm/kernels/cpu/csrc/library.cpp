// The class palu_cpu::Codec that Python sees.
#include <ATen/ops/bmm.h>
#include <torch/custom_class.h>
#include <torch/library.h>

#include "few_queries.hpp"
#include "store.hpp"

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

struct Codec : torch::CustomClassHolder {
  Layer layer;
  Store stored;

  // See kernels/cpu/codec_constants.py for what everything is.
  Codec(const Numbers& tiers_k, const Numbers& tiers_v, const Numbers& levels, const std::vector<double>& units,
        const Numbers& shape, const Tensors& tensors, double soft_cap) {
    layer.key = make_side(tiers_k, levels, SCALES);
    layer.value = make_side(tiers_v, levels, SCALES + layer.key.bytes);
    layer.groups = shape.at(0), layer.kv_heads = shape.at(1), layer.heads = shape.at(2), layer.window = shape.at(3);
    layer.query_map = tensors.at("query_map").contiguous();
    layer.value_map = tensors.at("value_map").contiguous();
    layer.key_dim = layer.query_map.size(1), layer.value_dim = layer.value_map.size(2);
    layer.features = layer.query_map.size(2) - layer.key.rank - 1;
    if (tensors.contains("sinks")) layer.sinks = tensors.at("sinks").contiguous();
    layer.soft_cap = static_cast<float>(soft_cap);
    stored.key = {make_encoder(layer.key, levels, units), tensors.at("encoder_k"), tensors.at("sink_k")};
    stored.value = {make_encoder(layer.value, levels, units), tensors.at("encoder_v"), tensors.at("sink_v")};
    stored.value_mean = tensors.at("value_mean");
    stored.centre_cos = tensors.at("centre_cos"), stored.centre_sin = tensors.at("centre_sin");
    at::Tensor frequency_of = tensors.at("frequency_of");
    stored.frequency_of.assign(frequency_of.const_data_ptr<int64_t>(), frequency_of.const_data_ptr<int64_t>() + layer.key_dim);
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
    std::vector<Request> requests;
    for (int64_t i = 0; i < seq_lens.size(0); i++)
      if (start[i + 1] > start[i])
        requests.push_back({block_table.const_data_ptr<int32_t>() + i * block_table.stride(0), start[i],
                            start[i + 1] - start[i], length[i]});
    int64_t tokens = start[seq_lens.size(0)] - start[0];
    if (!tokens) return;
    at::Tensor rows = query.narrow(0, start[0], tokens).to(at::kFloat).contiguous();
    at::Tensor means = attend_few(layer, Cache(cache), rows, features.const_data_ptr<float>(), requests);
    at::Tensor values = at::bmm(means, layer.value_map); // [kv_heads, tokens * kv_queries, value_dim]
    at::Tensor by_token = values.view({layer.kv_heads, tokens, layer.kv_queries(), -1}).transpose(0, 1);
    out.narrow(0, start[0], tokens).view({tokens, layer.kv_heads, layer.kv_queries(), -1}).copy_(by_token);
  }
};

} // namespace

TORCH_LIBRARY(palu_cpu, library) {
  library.class_<Codec>("Codec")
      .def(torch::init<const Numbers&, const Numbers&, const Numbers&, const std::vector<double>&, const Numbers&,
                       const Tensors&, double>())
      .def("put", &Codec::put)
      .def("attend", &Codec::attend);
}

} // namespace palu
