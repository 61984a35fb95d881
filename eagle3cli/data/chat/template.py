"""A chat template at work: messages to the text that a server feeds the target."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eagle3cli.data.chat.named import template_text
from eagle3cli.errors import DataError, ModelError, UsageError

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]]

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_NAME = "\ue000{}\ue001"
PARTS = "content_parts"
"""Where `eagle3cli.data.conversations.messages` keeps the parts of a content: texts, and an object for each image."""
_COMPLAINTS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What a template may raise by itself where a conversation is not what it expects."""
NO_IMAGES = "the chat template does not write images as those of known multi-modal models do"
UNWRITTEN = "the chat template does not write the tool calls"


@dataclass
class Chat:
    """One tokenizer with one template: ``auto`` (its own), a named one, or a ``.jinja`` file.

    Raises UsageError for an unknown template, ModelError where the tokenizer does not fit.
    """

    tokenizer: Any
    name: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict)
    """Values that the template reads, e.g. ``{"enable_thinking": False}``."""
    placeholder_renderings: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)
    """Renderings of placeholders alone, kept by `eagle3cli.data.chat.skeletons`."""
    _jinja: str | None = field(init=False)
    _blocks: dict[bool, bool] = field(default_factory=dict, init=False, repr=False)
    """Whether the template for conversations with tools, and the one without, has generation blocks."""
    _joints: dict[str, str] = field(default_factory=dict, init=False, repr=False)
    """By role: what the template writes between the parts of a content."""
    _form: int = field(default=0, init=False)
    """Which form of tool calls the template took last."""

    def __post_init__(self) -> None:
        self._jinja = template_text(self.name, self.tokenizer)

    def render(self, messages: Messages, add_generation_prompt: bool = False, tools: Tools = (), **kwargs: Any) -> str:
        """The conversation as text, with a reply's header at the end where ``add_generation_prompt``.

        Raises ModelError with the template's own complaint.
        """
        from jinja2.exceptions import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                [_with_thinking(message) for message in messages],
                tools=_tool_list(tools),
                chat_template=self._jinja,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **{**self.options, **kwargs},
            )
        except (TemplateError, *_COMPLAINTS) as error:
            raise ModelError("refused-by-template", f"the chat template refuses the conversation: {error}") from error
        return str(text)

    def has_generation_blocks(self, tools: Tools = ()) -> bool:
        """Whether the template says itself, by ``{% generation %}``, what the target wrote."""
        if bool(tools) not in self._blocks:
            self._blocks[bool(tools)] = _GENERATION.search(self.template(tools)) is not None
        return self._blocks[bool(tools)]

    def template(self, tools: Tools = ()) -> str:
        """The template's Jinja text; some tokenizers have another one for conversations with tools."""
        return str(self.tokenizer.get_chat_template(self._jinja, _tool_list(tools)))

    def generation_spans(self, messages: Messages, tools: Tools = ()) -> list[tuple[int, int]]:
        """The character spans inside ``{% generation %}`` of the text that :meth:`render` gives."""
        from transformers.utils.chat_template_utils import render_jinja_template

        render: Any = render_jinja_template  # its annotation forgets the spans
        _, spans = render(
            conversations=[[_with_thinking(message) for message in messages]],
            tools=_tool_list(tools),
            chat_template=self.template(tools),
            return_assistant_tokens_mask=True,
            **{**self.tokenizer.special_tokens_map, **self.options},
        )
        return [(int(start), int(end)) for start, end in spans[0]]

    def adapt_tool_calls(self, messages: Messages, tools: Tools = ()) -> Messages:
        """The messages in the form in which the template writes their tool calls.

        Templates differ in whether they read arguments as an object or as JSON text, and an empty content as text or
        as nothing. A content of several parts becomes the text that the template makes of them.

        Raises DataError where no form makes the template write every call.
        """
        messages = self._with_joined_parts(messages)
        if not any(message.get("tool_calls") for message in messages):
            return messages
        problems = []
        forms = list(dict.fromkeys((self._form, 0, 1, 2, 3)))
        for form in forms:
            adapted = [_in_form(message, text_arguments=form % 2 == 1, no_content=form > 1) for message in messages]
            names: list[str] = []
            try:
                text = self.render([_with_placeholder_names(message, names) for message in adapted], tools=tools)
            except ModelError as error:
                problems.append(error.message)
                continue
            if all(name in text for name in names):
                self._form = form
                return adapted
        raise DataError("refused-by-template", problems[0] if len(problems) == len(forms) else UNWRITTEN)

    def _with_joined_parts(self, messages: Messages) -> Messages:
        """The messages, each content of several parts as one text: joined as the template joins a list of parts, and
        line by line, as servers do, where it takes none. An image is what the template writes for it; raises DataError
        where that does not give the template's own rendering of the parts."""
        if not any(PARTS in message for message in messages):
            return messages
        joined = []
        for message in messages:
            plain = {key: value for key, value in message.items() if key != PARTS}
            if _has_images(message):
                plain["content"] = self._written_parts(message[PARTS])
            elif PARTS in message:
                plain["content"] = self._joint(message["role"]).join(message[PARTS])
            joined.append(plain)
        if any(map(_has_images, messages)):
            in_parts = [
                {**plain, "content": _listed(message[PARTS])} if _has_images(message) else plain
                for message, plain in zip(messages, joined, strict=True)
            ]
            if self._image_rendering(in_parts) != self._image_rendering(joined):
                raise DataError("images-unsupported", NO_IMAGES)
        return joined

    def _written_parts(self, parts: Sequence[Any]) -> str:
        """What the template writes for a user's content of texts and images."""
        name = _NAME.format(0)
        before, _, behind = self._image_rendering([{"role": "user", "content": name}]).partition(name)
        text = self._image_rendering([{"role": "user", "content": _listed(parts)}])
        if not (text.startswith(before) and text.endswith(behind) and len(text) >= len(before) + len(behind)):
            raise DataError("images-unsupported", NO_IMAGES)
        return text[len(before) : len(text) - len(behind)]

    def _image_rendering(self, messages: Messages) -> str:
        try:
            return self.render(messages)
        except ModelError as error:
            raise DataError("images-unsupported", f"{NO_IMAGES}: {error.message}") from error

    def _joint(self, role: str) -> str:
        """What the template writes between two parts of a content."""
        if role not in self._joints:
            texts = [_NAME.format(number) for number in range(2)]
            parts = [{"type": "text", "text": text} for text in texts]
            others = {"user": "a", "assistant": "b", "system": "c"}
            talk = [{"role": other, "content": others[other]} for other in ("system", "user", "assistant")]
            talk = [message for message in talk if message["role"] in (role, "user", "assistant")]
            asked = [{**message, "content": parts} if message["role"] == role else message for message in talk]
            try:
                between = self.render(asked).partition(texts[0])[2].partition(texts[1])
            except ModelError:
                between = ("", "", "")
            is_list = between[1] and not between[0].strip()
            self._joints[role] = between[0] if is_list else "\n"
        return self._joints[role]


def template_options(pairs: Sequence[str]) -> dict[str, Any]:
    """``name=value`` pairs for a template; a value that reads as JSON is what it reads as, any other is text.

    Raises UsageError for what is no pair.

    >>> template_options(["enable_thinking=false", "reasoning_effort=high"])
    {'enable_thinking': False, 'reasoning_effort': 'high'}
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.isidentifier():
            fix = "e.g. --chat-template-kwargs enable_thinking=false reasoning_effort=high"
            raise UsageError("invalid-value", f"{pair!r} is not name=value", where="data.chat_template_kwargs", fix=fix)
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


def _has_images(message: Mapping[str, Any]) -> bool:
    return any(not isinstance(part, str) for part in message.get(PARTS) or ())


def _listed(parts: Sequence[Any]) -> list[dict[str, str]]:
    """Parts as the templates of multi-modal models read them."""
    return [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts]


def _tool_list(tools: Tools) -> list[dict[str, Any]] | None:
    return [dict(tool) for tool in tools] or None


def _with_thinking(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message under the names that templates use: some read reasoning as ``thinking``."""
    reasoning = message.get("reasoning_content")
    return {"thinking": reasoning, **message} if reasoning else dict(message)


def _in_form(message: Mapping[str, Any], *, text_arguments: bool, no_content: bool) -> Mapping[str, Any]:
    if not message.get("tool_calls"):
        return message
    if no_content and not message["content"]:
        message = {**message, "content": None}
    return _with_functions(message, _with_text_arguments) if text_arguments else message


def _with_text_arguments(function: Mapping[str, Any]) -> Mapping[str, Any]:
    arguments = function["arguments"]
    return (
        function if isinstance(arguments, str) else {**function, "arguments": json.dumps(arguments, ensure_ascii=False)}
    )


def _with_placeholder_names(message: Mapping[str, Any], names: list[str]) -> Mapping[str, Any]:
    """The message with every function under a name that stands nowhere else, which is appended to ``names``."""

    def renamed(function: Mapping[str, Any]) -> Mapping[str, Any]:
        names.append(_NAME.format(len(names)))
        return {**function, "name": names[-1]}

    return _with_functions(message, renamed)


def _with_functions(
    message: Mapping[str, Any], change: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> Mapping[str, Any]:
    calls = [{**call, "function": change(call["function"])} for call in message.get("tool_calls") or ()]
    return {**message, "tool_calls": calls} if calls else message
