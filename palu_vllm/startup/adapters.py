"""Which LoRA adapters fit a palu model, decided by the names of their tensors before vLLM reads them.

Of an adapter that does not fit, vLLM leaves parts out or copies matrices that are too narrow, in both cases silently.
"""

import re
from dataclasses import dataclass
from typing import Self

from vllm.model_executor.models.utils import WeightsMapper

from palu_vllm.startup.served import ServedConfig

ADAPTED = ("q_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
DECOMPOSED = ("k_proj", "v_proj", "qkv_proj")
_MODULE = re.compile(r"(\w+)\.lora_\w+(\.\w+)*$")


@dataclass
class AdapterNames(WeightsMapper):
    """Changes no name and refuses those of matrices that a palu model does not have, or has in another form.

    vLLM asks the mapper of a loaded model about every tensor of an adapter, and it is the only part of a model that
    vLLM asks. With ``fused`` values the output projection takes latents, with ``mixed`` ones values that no other
    program computes; an adapter for the original may have the same shape and would be applied to them.
    """

    fused: bool = False
    mixed: bool = False

    @classmethod
    def of(cls, served: ServedConfig) -> Self:
        paths = {shape.value_path for shape in served.layers}
        return cls(fused="fused" in paths, mixed=served.palu.hadamard and "uncompressed" in paths)

    def get_rename_mapper(self) -> Self:
        return self

    def map_name(self, key: str) -> str:
        """Raises ValueError with one sentence. Pooling asks about the model's own tensors, which are no adapter's."""
        found = _MODULE.search(key)
        if not found:
            return key
        module = found[1]
        if module in DECOMPOSED:
            raise ValueError(
                f"the adapter has {key}, but a palu checkpoint holds keys and values as low-rank factors; "
                f"merge the adapter into the model before palu-compress, or train one without {module}."
            )
        if module == "o_proj" and self.fused:
            raise ValueError(
                f"the adapter has {key}, but o_proj of this checkpoint has v_up multiplied into it; "
                "compress the model with --value-path factored, or train an adapter without o_proj."
            )
        if module == "o_proj" and self.mixed:
            raise ValueError(
                f"the adapter has {key}, but o_proj of a layer whose values are stored whole takes them mixed; "
                "serve the model without mixed latents, or train an adapter without o_proj."
            )
        if module not in ADAPTED:
            raise ValueError(f"the adapter has {key}; adapters of a palu model may have {', '.join(ADAPTED)} only.")
        return key
