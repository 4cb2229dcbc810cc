"""Chat prompts of many kinds, the same for every arm."""

from transformers import PreTrainedTokenizerBase

TASKS = (
    "Explain in three sentences what {} is.",
    "Write a short story about {}.",
    "List five facts about {}.",
    "How would you describe {} to a child?",
    "Write a Python function that prints something about {}.",
)
TOPICS = ("a lighthouse", "photosynthesis", "the Roman army", "compound interest", "a chess opening", "the Danube",
          "volcanoes", "a printing press", "vaccination", "the moon")  # fmt: skip


def prompts(tokenizer: PreTrainedTokenizerBase, count: int) -> list[list[int]]:
    """Chat prompts by the model's own template; plain text where it has none."""
    asked = [task.format(topic) for task in TASKS for topic in TOPICS][:count]
    if not tokenizer.chat_template:
        return [tokenizer.encode(f"{each}\n") for each in asked]
    chats = [[{"role": "user", "content": each}] for each in asked]
    return [tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in chats]
