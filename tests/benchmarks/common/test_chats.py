"""Chat prompts: as many as asked, all of them different, by a template or plain."""

import pytest

from benchmarks.common.chats import prompts
from tests.support.tiny_models import byte_tokenizer

TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_prompts_differ(template):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    asked = prompts(tokenizer, 50)
    assert len({tuple(ids) for ids in asked}) == 50
    assert ("<user>" in tokenizer.decode(asked[0])) == bool(template)
