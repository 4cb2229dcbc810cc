"""Prometheus metrics of a server with a codec: what the codec is, what it costs, and how far live text drifts from it.

Workers measure drift, see ``attention_backend.codec.drift``; this process reads what they have found.
"""

from vllm.config import VllmConfig

from palu_vllm.attention_backend.codec.drift_files import Drift, DriftFiles
from palu_vllm.server.gauges import Gauges
from palu_vllm.startup.codec.facts import CodecFacts


class CodecMetrics:
    """Publishes ``palu_codec_*`` of one engine: facts at once, drift after steps."""

    def __init__(self, facts: CodecFacts, vllm_config: VllmConfig, engine: int, gauges: Gauges) -> None:
        self._gauges, self._files = gauges, DriftFiles(vllm_config, engine)
        self._published: Drift | None = None
        about = {"codec": facts.codec, "digest": facts.digest, "first_token": facts.first_token}
        layers = {"layers": len(facts.layers), "layers_left_dense": len(facts.layers_left_dense)}
        said = about | {name: str(count) for name, count in layers.items()}
        gauges.set("palu_codec_info", "The codec that is served, in its labels.", 1, **said)
        for by, kl in (("calibration", facts.kl), ("prediction", facts.predicted_kl)):
            if kl is not None:
                gauges.set("palu_codec_kl", "KL from the dense model, in nats per token, by its report.", kl, by=by)
        for side, bits in (("key", facts.bits_k), ("value", facts.bits_v)):
            for layer, each in zip(facts.layers, bits, strict=True):
                gauges.set("palu_codec_bits", "Bits per number, scales left out.", each, layer=str(layer), side=side)

    def record(self) -> None:
        """Costs one look at a folder where nothing is new."""
        drift = self._files.read()
        if drift is None or drift is self._published:
            return
        self._published = drift
        about = "Coding error of stored tokens over that of the calibration, sampled."
        for over, ratio in (("mean", drift.mean), ("max", drift.largest)):
            self._gauges.set("palu_codec_drift_ratio", about, ratio, over=over)
        self._gauges.set("palu_codec_drift_tokens", "Tokens that drift was sampled on.", drift.tokens)
