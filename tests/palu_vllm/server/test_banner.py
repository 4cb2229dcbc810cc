from palu_vllm.format.checkpoint import read_json
from palu_vllm.server.banner import banner
from palu_vllm.server.facts import CacheFacts
from palu_vllm.startup.served import ServedConfig


def test_one_line_with_versions_ranks_bytes_ratio_and_kernels(palu):
    config = read_json(palu("llama", (32, 24), (40, 16)) / "config.json")
    line = banner(CacheFacts.of(ServedConfig.of(config, {}, "bfloat16"), "cpu"))
    assert "\n" not in line
    for part in ("palu-vllm 0.1.0 on vLLM 0.32", "rank_k 24-32", "rank_v 16-40", "torch kernels"):
        assert part in line
    assert "448 bytes of KV cache per token in bfloat16 instead of 1,024 (2.29x the tokens)" in line
