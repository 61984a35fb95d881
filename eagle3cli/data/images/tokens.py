"""Token ids that stand for text and images: what is passed on with them, so that a target sees the images."""

from __future__ import annotations

from collections.abc import Sequence

from eagle3cli.data.images.reference import ImageRef


class ImageTokens(tuple[int, ...]):
    """Tokens of a row with images, whose tokens stand among them."""

    images: tuple[ImageRef, ...]

    @classmethod
    def of(cls, token_ids: Sequence[int], images: tuple[ImageRef, ...]) -> ImageTokens:
        """The tokens of a row with these images."""
        tokens = cls(token_ids)
        tokens.images = images
        return tokens


def followed_by(prompt: Sequence[int], token_ids: Sequence[int]) -> Sequence[int]:
    """A prompt with tokens of text behind it, and with the images that it has."""
    whole = [*prompt, *token_ids]
    return ImageTokens.of(whole, prompt.images) if isinstance(prompt, ImageTokens) else whole
