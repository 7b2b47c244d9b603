"""Conversations: lists of messages, turned to tokens by the tokenizer's own chat template."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from cutaway.errors import TokenizerUnfit, UsageError

Message: TypeAlias = Mapping[str, Any]
"""`{"role": "user", "content": "..."}`."""
Conversation: TypeAlias = Sequence[Message]


def conversations(prompts: Any) -> list[Conversation] | None:
    """The conversations in what was given as prompts; None when they are something else."""
    if isinstance(prompts, str) or not isinstance(prompts, Sequence) or not prompts:
        return None
    if all(isinstance(item, Mapping) for item in prompts):
        return [prompts]
    lists = [isinstance(item, Sequence) and not isinstance(item, str) and len(item) > 0 for item in prompts]
    if all(lists) and all(isinstance(message, Mapping) for item in prompts for message in item):
        return list(prompts)
    return None


def chat_ids(tokenizer: Any, given: Sequence[Conversation], name: str) -> list[list[int]]:
    """Token ids of conversations, up to where the model is to answer.

    A conversation that ends with a message of the assistant is continued inside that message. Raises TokenizerUnfit
    without a template, UsageError for a message without role or content, and for a template that begins a text twice.
    """
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        raise TokenizerUnfit(
            f"{name}: its tokenizer has no chat template, so messages have no form that it was trained on; give the "
            "prompt as text, or set tokenizer.chat_template",
            what="chat template",
        )
    return [_ids(tokenizer, messages, name) for messages in given]


def _ids(tokenizer: Any, messages: Conversation, name: str) -> list[int]:
    for message in messages:
        if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str | list):
            raise UsageError(
                f"message {dict(message)!r}: it needs a role and a content, as in "
                "{'role': 'user', 'content': 'Hello'}"
            )
    own = messages[-1]["role"] == "assistant"
    try:
        found = tokenizer.apply_chat_template(
            list(messages), tokenize=True, add_generation_prompt=not own, continue_final_message=own, return_dict=False
        )
    except Exception as error:  # templates raise what they like: jinja2's errors, and errors of their own
        raise UsageError(f"{name}: the chat template refuses these messages: {error}") from error
    ids = list(found)
    if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
        raise UsageError(
            f"{name}: the chat template begins the text twice ({tokenizer.bos_token!r}); leave it out of the messages"
        )
    return ids
