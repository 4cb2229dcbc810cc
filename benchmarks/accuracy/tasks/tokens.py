"""Text to the token ids of prompts."""

from typing import Any

MARK = "\x00here\x00"


class Tokens:
    """A tokenizer of transformers, as prompts need it: pieces without BOS, and what goes around them."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.begin: list[int] = tokenizer.encode("")  # of every prompt: the tokenizer's BOS, or nothing

    def encode(self, text: str) -> list[int]:
        """Ids of a piece of a prompt: no BOS."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids)

    def wrap(self, before: str, after: str, chat: bool) -> tuple[list[int], list[int]]:
        """Ids before and after what a prompt is about, BOS included; with ``chat`` both within one turn.

        Raises ValueError for a model without a chat template.
        """
        if chat:
            if not self.tokenizer.chat_template:
                raise ValueError("the model has no chat template; leave --chat out.")
            turn = [{"role": "user", "content": before + MARK + after}]
            text = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
            before, after = text.removeprefix(self.decode(self.begin)).split(MARK)
        return self.begin + self.encode(before), self.encode(after)
